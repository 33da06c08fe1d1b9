"Markdown that nbconvert made of nbs/index.ipynb, on standard input, as README.md on standard output: drops directives, mends picture paths."
import re, sys
text = sys.stdin.read()
text = re.sub(r'^#\|.*\n', '', text, flags=re.M)
text = re.sub(r'\]\((?!http)([\w/-]+\.(?:ipynb|png)(?:#[\w-]+)?)\)', r'](nbs/\1)', text).replace('](../', '](')
text = re.sub(r'^```\n(?=from |import )', '```python\n', text, flags=re.M)
sys.stdout.write(re.sub(r'\n{3,}', '\n\n', text).strip()+'\n')
