"The benchmarks that train or sample, at their smallest: what they print can be read, adds up, and is kept."
import json, math, os, subprocess, sys
from pathlib import Path
import pytest

BENCH = Path(__file__).parent.parent/'bench'
pytestmark = pytest.mark.slow

@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    from latentfast.scenes import make_scenes
    return make_scenes(tmp_path_factory.mktemp('bench')/'photos', 300, size=64, valid_pct=.3, workers=0, progress=False)

def quick(script, *args, cwd):
    "The rows that `script --quick` prints, as {case: row}; a case of several losses or units has these beside it"
    r = subprocess.run([sys.executable, BENCH/f'{script}.py', *map(str, args), '--quick'], cwd=cwd, capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert r.returncode==0, r.stderr[-3000:]
    rows = [o for o in (json.loads(l) for l in r.stdout.splitlines() if l.startswith('{')) if 'ratio' in o]
    for o in rows:
        assert o['bench']==script and o['runs']>=1 and o['peer'] and o['unit'] and o['spread']==sorted(o['spread'])
        assert all(math.isfinite(o[k]) and (o[k]>=0 or o['unit']=='KID') for k in ('ours','theirs'))  # a KID is unbiased, so it may be below 0
        if o['theirs']>0: assert o['ratio']==pytest.approx(o['ours']/o['theirs'])
    return {tuple(filter(None, (o['case'], o.get('loss'), o['unit']))): o for o in rows}

def test_sample(tmp_path):
    rows = quick('sample', cwd=tmp_path)
    for case in 'overhead','overhead_unipc','overhead_guided': assert .5<rows[case,'s']['ratio']<3
    calls = [k for k in rows if k[0].startswith('calls_to_ddim100')]
    assert all(rows[k]['theirs']==100 and rows[k]['ours'] in (5,10,20) and rows[k]['fid_ddim100']>0 for k in calls)

def test_quality(photos, tmp_path):
    args = photos, '--work', tmp_path/'work', '--arms', 'weak', 'mseweak', '--seeds', 1
    rows = quick('quality', *args, cwd=tmp_path)
    assert set(rows)=={('cifar10_8x8',a,u) for a in ('weak','mseweak') for u in ('FID','KID')} and rows['cifar10_8x8','weak','FID']['theirs']>0
    assert quick('quality', *args, cwd=tmp_path)==rows

def test_class_to_image(photos, tmp_path):
    args = photos, '--work', tmp_path/'work', '--plot', tmp_path/'plot.png'
    rows = quick('class_to_image', *args, cwd=tmp_path)
    assert set(rows)=={(f'guidance_{g}_{k}', k) for g in ('1','1.5') for k in ('accuracy','fid')} and (tmp_path/'plot.png').exists()
    assert all(o['ours']<=1 for (_,k),o in rows.items() if k=='accuracy')
    assert quick('class_to_image', *args, cwd=tmp_path)==rows

def test_text_to_image(tmp_path):
    args = tmp_path/'out', '--guidance', 1, 3
    rows = quick('text_to_image', *args, cwd=tmp_path)
    assert {'guidance_1','guidance_3','guidance_3_colour'} <= {case for case,_ in rows} and (tmp_path/'out'/'quick'/'guidance-3-16-5.png').exists()
    assert all(o['ours']<=1 for o in rows.values()) and rows['guidance_1','share']['theirs']>=.5
    assert quick('text_to_image', *args, cwd=tmp_path)==rows

def test_text_states(tmp_path):
    pytest.importorskip('transformers')
    rows = quick('text_states', cwd=tmp_path)
    assert set(rows)=={('step','s'),('memory','MB')} and rows['memory','MB']['ours']<rows['memory','MB']['theirs']
