"Every tutorial runs in its QUICK mode, from an empty folder and without a network; slow ones by `make test-slow`"
import json, re, time
from pathlib import Path
import nbformat, pytest
from nbclient import NotebookClient

TUTORIALS = sorted((Path(__file__).parent.parent/'nbs'/'tutorials').glob('*.ipynb'))
each = pytest.mark.parametrize('path', TUTORIALS, ids=lambda p: p.stem)

def outputs(nb): return [o for c in nb.cells if c.cell_type=='code' for o in c.outputs]

@each
def test_it_opens_on_colab_installs_itself_and_has_one_switch(path):
    nb = nbformat.read(path, as_version=4)
    text, code = ('\n'.join(c.source for c in nb.cells if c.cell_type==kind) for kind in ('markdown','code'))
    assert f'https://colab.research.google.com/github/latentfast/latentfast/blob/main/nbs/tutorials/{path.name}' in text
    assert code.count("QUICK = os.environ.get('LATENTFAST_QUICK', '1')=='1'")==1
    assert re.search(r"if not find_spec\('latentfast'\):\n    %pip install -q 'latentfast(\[[\w,]+\])? @ git\+https://github\.com/latentfast/latentfast'", code)

@each
def test_its_outputs_show_no_errors_and_no_paths_of_ours(path):
    for o in outputs(nbformat.read(path, as_version=4)):
        assert o.output_type!='error' and o.get('name')!='stderr', json.dumps(o)[:300]
        words = o.get('text', '') + str(o.get('data', {}).get('text/plain', ''))
        assert not re.search(r'(/tmp|/work|/root|/home)/', words), words[:300]

@each
def test_what_it_draws_is_there_to_see(path):
    for c in nbformat.read(path, as_version=4).cells:
        draws = c.cell_type=='code' and re.search(r'^ *(\w+\.)*show_\w+\(|plt\.subplots', c.source, re.M) and not re.search(r'^ *def ', c.source, re.M)
        assert not draws or any('image/png' in o.get('data', {}) for o in c.outputs), c.source

SECONDS = {}

@pytest.mark.slow
@each
def test_it_runs(path, tmp_path, monkeypatch):
    for k,v in dict(LATENTFAST_QUICK='1', HF_HUB_OFFLINE='1', FASTAI_HOME=str(tmp_path/'fastai')).items(): monkeypatch.setenv(k, v)
    nb = nbformat.read(path, as_version=4)
    for c in nb.cells:
        if c.cell_type=='code': c.outputs = []
    (work := tmp_path/'empty').mkdir()
    start = time.perf_counter()
    NotebookClient(nb, timeout=600, kernel_name='python3', resources=dict(metadata=dict(path=str(work)))).execute()
    SECONDS[path.stem] = time.perf_counter()-start
    assert any('image/png' in o.get('data', {}) for o in outputs(nb)), 'a tutorial shows what it makes'
    assert not (tmp_path/'fastai').exists(), 'something was downloaded'

@pytest.mark.slow
def test_all_of_them_take_less_than_40_minutes():
    if len(SECONDS)<len(TUTORIALS): pytest.skip('only with the runs of all of them in this process')
    assert sum(SECONDS.values())<40*60, SECONDS
