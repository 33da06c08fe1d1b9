"What holds for the project as a whole."
import ast, configparser, json, os, re, subprocess, sys
from pathlib import Path
import latentfast, pytest

ROOT = Path(__file__).parent.parent
ORDER = ['scenes','autoencoder','store','sources','encode','conditioning','data','callbacks','winograd','classifier','schedule','unet','perceptual','feature_nets','sampling','guidance','editing','decoding','training',
         'pipeline','play','evaluation','report','lpips','vae_training','demo','cli']

def python(code): return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=ROOT).stdout

def test_importing_the_package_or_its_command_is_light():
    assert python('import sys, latentfast, latentfast.cli; print("torch" in sys.modules or "fastai" in sys.modules)')=='False\n'

@pytest.mark.slow
def test_importing_everything_takes_no_longer_than_its_two_libraries():
    "CPU time in turns, each time a new process: the median is within a tenth of fastai and diffusers by themselves"
    def seconds(code):
        before = os.times(); python(code); after = os.times()
        return after.children_user+after.children_system-before.children_user-before.children_system
    theirs = 'from fastai.vision.all import *; from diffusers import AutoencoderKL, DDIMPipeline, UNet2DModel'
    ratios = sorted(seconds('from latentfast.all import *')/seconds(theirs) for _ in range(5))
    assert ratios[2]<1.1, ratios

def test_all_gives_everything():
    assert python('from latentfast.all import *; print(LatentCodec.__name__, LatentStore.__name__, diffusion_learner.__name__, sample.__name__, fid.__name__, encode.__name__, evaluate.__name__)').split()==[
        'LatentCodec','LatentStore','diffusion_learner','sample','fid','encode','evaluate']

def test_all_names_every_module():
    here = {p.stem for p in (ROOT/'latentfast').glob('*.py')} - {'__init__','_modidx','all','cli'}
    assert re.findall(r'^from \.(\w+) import \*$', (ROOT/'latentfast'/'all.py').read_text(), re.M)==[o for o in ORDER if o in here]

def test_a_module_imports_only_from_those_above_it():
    for i,name in enumerate(ORDER):
        path = ROOT/'latentfast'/f'{name}.py'
        if not path.exists(): continue
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.ImportFrom) and node.level: siblings = [node.module] if node.module else [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom) and (node.module or '').startswith('latentfast.'): siblings = [node.module.split('.')[1]]
            else: continue
            assert all(ORDER.index(s)<i for s in siblings), f'{name} imports {siblings}'

def test_every_module_is_in_the_order():
    assert {p.stem for p in (ROOT/'latentfast').glob('*.py')} - {'__init__','_modidx','all'} <= set(ORDER)

def test_versions_agree():
    config = configparser.ConfigParser(interpolation=None); config.read(ROOT/'settings.ini')
    assert config['DEFAULT']['version']==latentfast.__version__
    assert f'version: {latentfast.__version__}\n' in (ROOT/'CITATION.cff').read_text()
    assert f"license: {config['DEFAULT']['license']}\n" in (ROOT/'CITATION.cff').read_text()

def test_the_workflow_tests_each_python_from_the_oldest_on():
    config = configparser.ConfigParser(interpolation=None); config.read(ROOT/'settings.ini')
    pythons = re.findall(r"'(3\.\d+)'", (ROOT/'.github'/'workflows'/'test.yml').read_text())
    assert pythons==[f'3.{i}' for i in range(10, 14)] and pythons[0]==config['DEFAULT']['min_python']
    assert f'requires-python = ">={pythons[0]}"' in (ROOT/'pyproject.toml').read_text()

def test_type_information_ships():
    assert (ROOT/'latentfast'/'py.typed').exists() and "'py.typed'" in (ROOT/'setup.py').read_text()

def test_the_bundled_autoencoder_is_small_and_ships():
    folder = ROOT/'latentfast'/'models'/'tiny'
    assert (folder/'diffusion_pytorch_model.safetensors').stat().st_size < 6_000_000 and (folder/'config.json').exists()
    assert 'models/*/*' in (ROOT/'setup.py').read_text()

def test_nothing_is_unpickled():
    for p in (ROOT/'latentfast').glob('*.py'):
        for call in re.findall(r'torch\.load\([^)]*\)', p.read_text(encoding='utf-8')): assert 'weights_only=True' in call, f'{p.name}: {call}'
        assert not re.search(r'pickle\.loads?\(|trust_remote_code', p.read_text(encoding='utf-8')), p.name

def test_notebooks_stay_small():
    for p in (ROOT/'nbs').rglob('*.ipynb'): assert p.stat().st_size < 1_500_000, f'{p.name} has {p.stat().st_size//1024} KB: draw fewer or smaller pictures'

def test_no_page_says_that_it_is_on_pypi():
    for p in (ROOT/'README.md', ROOT/'CONTRIBUTING.md', *(ROOT/'nbs').rglob('*.ipynb')):
        found = re.findall(r"pip install (?:-\S+ )*'?latentfast(?![\[\w]| @).*", p.read_text(encoding='utf-8'))
        assert not found, f'{p.name}: {found}'

def test_outputs_name_no_folder_of_a_machine():
    for p in (ROOT/'nbs').rglob('*.ipynb'):
        for cell in json.loads(p.read_text(encoding='utf-8'))['cells']:
            shown = ''.join(''.join(o.get('text', o.get('data', {}).get('text/plain', ''))) for o in cell.get('outputs', []))
            assert not re.search(r'(?<![\w.])/(tmp|home|root|work|Users|var)/\w', shown), f'{p.name}: {shown[:200]}'
