"The README as a new user tries it: the wheel in an empty virtual environment, then each block in order, copied as it is."
import csv, json, os, re, shutil, subprocess, sys, zipfile
from pathlib import Path
import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow

def blocks():
    "(kind, text) of the README's blocks about one's own pictures"
    text = (ROOT/'README.md').read_text(encoding='utf-8').partition('\n## Your own pictures\n')[2]
    return re.findall(r'^```(sh|python)\n(.*?)^```$', text, re.M|re.S)

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

def run_blocks(folder, bin):
    "Run the README's blocks in `folder` with the programs of `bin`; each as a user copies it, into a shell or a new notebook"
    env = {k: v for k,v in os.environ.items() if k not in ('PYTHONPATH','VIRTUAL_ENV')}
    env.update(PATH=f'{bin}{os.pathsep}{os.environ["PATH"]}', MPLBACKEND='Agg', HF_HUB_OFFLINE='1')
    for i,(kind,text) in enumerate(blocks()):
        args = ['bash', '-e', '-c', text] if kind=='sh' else [str(Path(bin)/'python'), '-c', text]
        r = subprocess.run(args, cwd=folder, env=env, capture_output=True, text=True)
        assert r.returncode==0, f'Block {i} of README.md:\n{text}\nends with\n{r.stderr[-2000:]}'

@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "The wheel, built from a copy, so that what an earlier build left does not get in"
    tmp = tmp_path_factory.mktemp('wheel')
    shutil.copytree(ROOT/'latentfast', tmp/'src'/'latentfast', ignore=shutil.ignore_patterns('__pycache__'))
    for f in 'setup.py','settings.ini','pyproject.toml','README.md','LICENSE': shutil.copy(ROOT/f, tmp/'src')
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--wheel-dir', tmp, tmp/'src'], check=True)
    return next(tmp.glob('*.whl'))

def test_the_wheel_is_small_and_whole(wheel):
    assert wheel.stat().st_size < 20e6
    inside = set(zipfile.ZipFile(wheel).namelist())
    want = {p.relative_to(ROOT).as_posix() for p in (ROOT/'latentfast').rglob('*') if p.is_file() and '__pycache__' not in p.parts}
    assert want <= inside and 'latentfast/py.typed' in want
    assert {n.split('/')[0] for n in inside}=={'latentfast', f'latentfast-{wheel.name.split("-")[1]}.dist-info'}

def test_each_block_of_the_readme_runs_from_the_wheel(wheel, tmp_path):
    venv = tmp_path/'venv'
    subprocess.run([sys.executable, '-m', 'venv', venv], check=True)
    bin = venv/('Scripts' if os.name=='nt' else 'bin')
    subprocess.run([bin/'python', '-m', 'pip', 'install', '--quiet', wheel], check=True)
    (tmp_path/'user').mkdir()
    run_blocks(user_folder(tmp_path/'user'), bin)
    from PIL import Image
    with Image.open(tmp_path/'user'/'grid.png') as im: assert im.size==(8*66-2, 8*66-2)
    assert {kind for kind,_ in blocks()}=={'sh','python'} and len(blocks())>=3
