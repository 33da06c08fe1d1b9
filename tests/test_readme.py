"The README as a new user tries it: from the clone and an empty virtual environment on, each block in order, copied as it is but for the clone and the demo's minutes."
import csv, json, os, re, shutil, subprocess, sys, zipfile
from pathlib import Path
import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow

def blocks():
    "(kind, text) of the README's blocks"
    return re.findall(r'^```(sh|python)\n(.*?)^```$', (ROOT/'README.md').read_text(encoding='utf-8'), re.M|re.S)

def user_folder(folder, n=48):
    "A folder with `photos`, in folders by class, and captions.csv: so few that all the README's epochs are minutes"
    from latentfast.scenes import make_scenes
    make_scenes(folder/'photos', n, size=64, workers=0, progress=False)
    scenes = folder/'photos'/'scenes.jsonl'
    rows = [json.loads(l) for l in scenes.read_text().splitlines()]
    with open(folder/'captions.csv', 'w', newline='') as f:
        csv.writer(f).writerows([('file','caption'), *((r['key'], r['caption']) for r in rows)])
    scenes.unlink()  # a user has no such file
    return folder

def run_blocks(folder, bin, clone):
    "Run the README's blocks, from `folder` on, with the programs of `bin`; each as a user copies it, into one shell or a new notebook. A copy of `clone` is what is cloned"
    env = {k: v for k,v in os.environ.items() if k not in ('PYTHONPATH','VIRTUAL_ENV')}
    env.update(PATH=f'{bin}{os.pathsep}{os.environ["PATH"]}', MPLBACKEND='Agg', HF_HUB_OFFLINE='1')
    for i,(kind,text) in enumerate(blocks()):
        text = text.replace('git clone https://github.com/latentfast/latentfast', f'cp -R {clone} latentfast').replace('make demo', 'make -n demo')
        args = ['bash', '-e', '-c', text+'pwd'] if kind=='sh' else [str(Path(bin)/'python'), '-c', text]
        r = subprocess.run(args, cwd=folder, env=env, capture_output=True, text=True)
        assert r.returncode==0, f'Block {i} of README.md:\n{text}\nends with\n{r.stderr[-2000:]}'
        if 'make -n demo' in text: assert 'latentfast demo --out demo' in r.stdout and (folder/'latentfast'/'Makefile').exists()
        if kind=='sh': folder = Path(r.stdout.splitlines()[-1])
    return folder

@pytest.fixture(scope='module')
def clone(tmp_path_factory):
    "What a clone has that the installation needs, without what an earlier build left"
    clone = tmp_path_factory.mktemp('clone')/'src'
    shutil.copytree(ROOT/'latentfast', clone/'latentfast', ignore=shutil.ignore_patterns('__pycache__'))
    for f in 'setup.py','settings.ini','pyproject.toml','README.md','LICENSE','Makefile': shutil.copy(ROOT/f, clone)
    return clone

def test_the_wheel_is_small_and_whole(clone, tmp_path):
    shutil.copytree(clone, tmp_path/'src')
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--wheel-dir', tmp_path, tmp_path/'src'], check=True)
    wheel = next(tmp_path.glob('*.whl'))
    assert wheel.stat().st_size < 20e6
    inside = set(zipfile.ZipFile(wheel).namelist())
    want = {p.relative_to(ROOT).as_posix() for p in (ROOT/'latentfast').rglob('*') if p.is_file() and '__pycache__' not in p.parts}
    assert want <= inside and 'latentfast/py.typed' in want
    assert {n.split('/')[0] for n in inside}=={'latentfast', f'latentfast-{wheel.name.split("-")[1]}.dist-info'}

def test_each_block_of_the_readme_runs(clone, tmp_path):
    subprocess.run([sys.executable, '-m', 'venv', tmp_path/'venv'], check=True)
    user_folder(tmp_path/'user'/'work')
    at = run_blocks(tmp_path/'user', tmp_path/'venv'/('Scripts' if os.name=='nt' else 'bin'), clone)
    from PIL import Image
    with Image.open(at/'grid.png') as im: assert im.size==(8*66-2, 8*66-2)
    text = ''.join(t for _,t in blocks())
    assert at.samefile(tmp_path/'user'/'work') and all(o in text for o in ('git clone https://github.com/latentfast/latentfast', 'make demo', 'pip install .', 'from latentfast.all import *'))
