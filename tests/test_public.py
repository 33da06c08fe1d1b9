"What users read: every public name says what it is and takes, every command explains itself."
import argparse, contextlib, dataclasses, importlib, inspect, io, json, pkgutil, re, shutil, subprocess, sys
from types import SimpleNamespace
import pytest
import latentfast
from fastcore.docments import docments
from latentfast.cli import COMMANDS, main, parser
from conftest import make_pictures

MODULES = sorted(m.name for m in pkgutil.iter_modules(latentfast.__path__) if m.name not in ('all','_modidx'))

def own_parameters(func):
    "The names in a function's own definition: neither `self`, `*args` and `**kwargs` nor what `delegates` adds"
    code = inspect.unwrap(func).__code__
    return [p for p in code.co_varnames[:code.co_argcount+code.co_kwonlyargcount] if p not in ('self','cls')]

def gaps(name, o):
    "What public function or class `o` leaves unsaid"
    if not (o.__doc__ or '').strip() or dataclasses.is_dataclass(o) and o.__doc__.startswith(f'{o.__name__}('): yield f'{name}: no docstring'
    if inspect.isclass(o):
        if dataclasses.is_dataclass(o): params = [f.name for f in dataclasses.fields(o) if f.name in o.__dict__.get('__annotations__', {})]
        elif inspect.isfunction(init := o.__dict__.get('__init__')): params, o = own_parameters(init), inspect.unwrap(init)
        else: return
    else: params, o = own_parameters(o), inspect.unwrap(o)
    said = docments(o)
    yield from (f'{name}: nothing about {p}' for p in params if not said.get(p))

def public(module):
    "(name, function or class) of what a module defines for its users"
    m = importlib.import_module(f'latentfast.{module}')
    named = [(n, getattr(m, n)) for n in m.__all__]
    return [(n, o) for n,o in named if (inspect.isfunction(o) or inspect.isclass(o)) and o.__module__==m.__name__]

@pytest.mark.parametrize('module', MODULES)
def test_every_public_name_is_documented(module):
    assert [g for name,o in public(module) for g in gaps(name, o)]==[]

def test_public_methods_are_documented_too():
    from fastai.callback.core import event
    protocol = {*vars(event), 'state_dict', 'load_state_dict', 'term'}  # fastai's and torch's names, and `LossTerm`'s
    found = []
    for module in MODULES:
        for name,o in public(module):
            if not inspect.isclass(o): continue
            for k,f in vars(o).items():
                f = getattr(f, '__func__', f)
                if not inspect.isfunction(f) or k.startswith('_') or k in protocol: continue
                ours = inspect.unwrap(f).__module__.startswith('latentfast.') and not any(hasattr(b, k) for b in o.__mro__[1:])
                if ours: found += gaps(f'{name}.{k}', f)
    assert found==[]

def printed(*args):
    "What a command that succeeds prints"
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try: status = main([str(a) for a in args])
        except SystemExit as e: status = e.code or 0
    assert status==0
    return out.getvalue()

def subparsers(): return next(a for a in parser()._actions if isinstance(a, argparse._SubParsersAction)).choices

@pytest.mark.parametrize('name', COMMANDS)
def test_every_command_explains_each_of_its_arguments(name, monkeypatch):
    monkeypatch.setenv('COLUMNS', '10000')
    shown = printed(name, '--help')
    assert f'usage: latentfast {name} ' in shown and '(default: None)' not in shown
    for o in subparsers()[name]._actions:
        assert o.help, f'{name} {o.dest} has no help'
        line = next(l for l in shown.splitlines() if o.help.partition('%')[0] in l)
        if o.option_strings and o.nargs!=0 and o.default is not None: assert f'(default: {o.default})' in line, line

def test_the_map_names_the_commands_in_the_order_of_a_project():
    shown = printed()
    way = re.findall(r'^  latentfast ([\w-]+)', shown, re.M)
    listed = re.findall(r'^    ([a-z][a-z-]+)(?: |$)', shown, re.M)
    assert way==[c for c in listed if c in way] and {*listed}=={*COMMANDS}
    assert way[0]=='demo' and way[1:]==sorted(way[1:], key='train-vae encode info verify train-classifier train sample evaluate play'.split().index)

def test_a_dry_run_says_what_encode_makes(tmp_path, codec_folder):
    pictures = make_pictures(tmp_path/'pictures', 200)
    (pictures/'cat'/'torn.png').write_bytes(b'no picture')
    args = ['encode', pictures, tmp_path/'store', '--codec', codec_folder, '--size', 64, '--flip']
    before = sorted(tmp_path.rglob('*'))
    shown = printed(*args, '--dry-run')
    assert sorted(tmp_path.rglob('*'))==before
    printed(*args)
    index = json.loads((tmp_path/'store'/'index.json').read_text())
    counts, torn = index['counts'], 1
    said = {k: int(n.replace(',', '')) for n,k in re.findall(r'([\d,]+) (train|valid|bytes|pictures)\b', shown)}
    assert said['train']+said['valid']==sum(counts.values())+torn and '2 classes of 100 to 101' in shown and '1 of which cannot be used' in shown
    bytes = sum((tmp_path/'store'/s['file']).stat().st_size for s in index['shards'])
    assert abs(said['bytes']/bytes-1) < .1, (said, bytes)
    assert re.search(r'time +0\.\d{3} hours', shown)

def test_the_probe_keeps_to_its_time(tmp_path, monkeypatch):
    "With a clock that says each batch took a second a picture, 10 seconds are 1+2+4 pictures"
    import time, latentfast.encode as e
    clock = [0.]
    monkeypatch.setattr(time, 'perf_counter', lambda: clock[0])
    def encoded(pictures, *args): clock[0] += len(pictures); return {}
    monkeypatch.setattr(e, '_decoded', lambda job, batches: [(batches[0], [0]*len(batches[0]))])
    monkeypatch.setattr(e, '_encode_fitting', lambda codec, pictures, *args: encoded(pictures))
    job = SimpleNamespace(plan=dict(batch_size=8, flip=False, moments=False), pictures=range(100))
    assert e._probe(job, None, None, 10)==(1., 7, 0)
    clock[0] = 0.; assert e._probe(job, None, None, 100)==(1., 95, 0)

@pytest.mark.skipif(not shutil.which('bash'), reason='no bash')
def test_bash_completes_commands_options_choices_and_files(tmp_path):
    pytest.importorskip('shtab')
    (tmp_path/'photos').mkdir()
    def complete(*words):
        tab = f'COMP_WORDS=({" ".join(words)}); COMP_CWORD={len(words)-1}; COMP_TYPE=9; _shtab_latentfast latentfast'
        script = '\n'.join([printed('completion', 'bash'), tab, 'printf "%s\\n" "${COMPREPLY[@]}"'])
        return subprocess.run(['bash'], input=script, capture_output=True, text=True, cwd=tmp_path).stdout.split()
    assert complete('latentfast', 'train-')==['train-vae', 'train-classifier', 'train-lpips']
    assert complete('latentfast', 'encode', '--dr')==['--dry-run']
    assert complete('latentfast', 'encode', '--crop', 'c')==['center']
    assert complete('latentfast', 'encode', 'pho')==['photos']

def test_completion_without_its_package_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'shtab', None)
    assert main(['completion', 'zsh'])==2 and "pip install 'latentfast[completion]'" in capsys.readouterr().err
