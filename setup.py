"The package's metadata and requirements live in settings.ini; this file only hands them to setuptools."
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup, find_packages

config = ConfigParser(interpolation=None); config.read('settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
extras = {k.removesuffix('_requirements'): v.split() for k,v in cfg.items() if k.endswith('_requirements')}
setup(version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'], license=cfg['license'],
      author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'],
      project_urls={'Documentation': cfg['doc_url'], 'Repository': cfg['git_url']},
      long_description=Path('README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
      classifiers=['Programming Language :: Python :: 3', 'Topic :: Scientific/Engineering :: Artificial Intelligence', 'Typing :: Typed'],
      install_requires=cfg['requirements'].split(), extras_require=extras,
      packages=find_packages(include=['latentfast', 'latentfast.*']), package_data={'latentfast': ['models/*/*', 'py.typed']},
      entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': ['latentfast=latentfast._modidx:d']})
