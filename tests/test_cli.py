"The command line as a user meets it: with mistakes, Ctrl-C and kills."
import contextlib, io, json, os, re, signal, subprocess, sys, tempfile, time
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pytest
from PIL import Image
from latentfast.cli import main
from latentfast.scenes import CLASSES

RUN = [sys.executable, '-c', 'import sys; from latentfast.cli import main; sys.exit(main())']
ENV = {**os.environ, 'OMP_NUM_THREADS': '1'}

def latentfast(*args, check=0):
    "What the command prints, after its exit status has been checked; in this process, which saves the imports"
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try: status = main([str(a) for a in args])
        except SystemExit as e: status = e.code or 0  # argparse
    assert status==check, err.getvalue()
    return SimpleNamespace(stdout=out.getvalue(), stderr=err.getvalue())

def one_line_error(*args):
    "The last line on stderr of a command that has to fail"
    r = latentfast(*args, check=2)
    assert 'Traceback' not in r.stderr
    return r.stderr.strip().splitlines()[-1]

@pytest.fixture(scope='module')
def work(tmp_path_factory):
    "A folder with scenes, a store and a classifier"
    from latentfast.scenes import make_scenes
    tmp = tmp_path_factory.mktemp('work')
    make_scenes(tmp/'scenes', 200, size=32, workers=1)
    latentfast('encode', tmp/'scenes', tmp/'store', '--size', 32)
    latentfast('train-classifier', tmp/'store', tmp/'clf', '--epochs', 1, '--batch-size', 32)
    return tmp

TRAIN = ['--epochs', 3, '--size', 'tiny', '--batch-size', 32]

@pytest.fixture(scope='module')
def model(work):
    latentfast('train', work/'store', work/'model', '--perceptual', work/'clf', *TRAIN)
    return work/'model'

def test_the_four_commands_end_with_a_grid(work, model):
    r = latentfast('sample', model, work/'grid.png', '-n', 9, '--steps', 5)
    with Image.open(work/'grid.png') as im: assert im.size==(3*34-2, 3*34-2) and np.asarray(im).std() > 5
    scores = json.loads(latentfast('evaluate', model, work/'store', '--features', work/'clf', '-n', 20, '--steps', 5, '--json').stdout)
    assert scores['fid'] > 0 and scores['n'] > 4

def test_one_seed_gives_the_same_weights_and_pictures(work, model):
    latentfast('train', work/'store', work/'again', '--perceptual', work/'clf', *TRAIN)
    weights = [(m/'unet'/'diffusion_pytorch_model.safetensors').read_bytes() for m in (model, work/'again')]
    assert weights[0]==weights[1]
    for m in (model, work/'again'): latentfast('sample', m, work/f'{m.name}.png', '-n', 4, '--steps', 5, '--seed', 3)
    assert (work/'model.png').read_bytes()==(work/'again.png').read_bytes()
    latentfast('sample', model, work/'other.png', '-n', 4, '--steps', 5, '--seed', 4)
    assert (work/'model.png').read_bytes()!=(work/'other.png').read_bytes()

@pytest.mark.parametrize('sig', [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_training_goes_on_to_the_same_weights(work, model, sig):
    out = work/f'broken-{sig.name}'
    args = [*RUN, *map(str, ['train', work/'store', out, '--perceptual', work/'clf', *TRAIN])]
    p = subprocess.Popen(args, stderr=subprocess.PIPE, text=True, env=ENV, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # a job in the background ignores it
    deadline = time.time()+120
    while not (out/'checkpoint.pt').exists() and p.poll() is None and time.time()<deadline: time.sleep(.005)
    p.send_signal(sig); err = p.communicate()[1]
    assert p.returncode=={signal.SIGINT: 130, signal.SIGTERM: 143}.get(sig, -sig), err
    assert not (out/'model_index.json').exists()
    if sig!=signal.SIGKILL: assert err.strip().splitlines()[-1]=='latentfast train: interrupted: the same command goes on where it stopped.'
    assert 'model_index.json' in one_line_error('sample', out, work/'x.png')
    subprocess.run(args, check=True, capture_output=True, env=ENV)
    a, b = ((m/'unet'/'diffusion_pytorch_model.safetensors').read_bytes() for m in (model, out))
    assert a==b

def test_two_trainings_in_one_folder(work, tmp_path):
    "The second is refused, and leaves the first one's folder alone"
    from latentfast.encode import _locked
    out = tmp_path/'model'; out.mkdir()
    with _locked(out): assert 'another process' in one_line_error('train', work/'store', out, *TRAIN)
    assert out.exists() and not (out/'training.json').exists()  # its arguments are not written over the first one's

@pytest.mark.parametrize('text', ['{}', '[]', 'null', '{"command": "train"}', '{"comm'])
def test_a_note_that_is_not_ours(work, tmp_path, text):
    out = tmp_path/'model'; out.mkdir(); (out/'training.json').write_text(text)
    assert 'damaged' in one_line_error('train', work/'store', out, *TRAIN)

def test_the_loss_on_features_and_the_weighting_are_chosen_by_name(work, model):
    latentfast('train', work/'store', work/'pooled', '--perceptual', work/'clf', '--loss', 'pooled', '--weight', .3, '--weighting', 'none', *TRAIN)
    card, other = ((m/'README.md').read_text() for m in (model, work/'pooled'))
    assert 'alignment (weight 0.5)' in card and '| weighting of noise levels | min_snr |' in card
    assert 'perceptual (weight 0.3)' in other and '| weighting of noise levels | none |' in other
    assert 'other arguments' in one_line_error('train', work/'store', model, '--perceptual', work/'clf', '--weighting', 'p2', *TRAIN)

def test_a_training_that_failed_before_anything_was_learnt_leaves_its_folder_free(work):
    assert 'not finite' in one_line_error('train', work/'store', work/'free', *TRAIN, '--lr', 1e20)
    latentfast('train', work/'store', work/'free', *TRAIN, '--gradient-checkpointing', '--precision', 'fp32')
    assert 'other arguments' in one_line_error('train', work/'store', work/'free', *TRAIN)

def test_finished_work_is_not_done_again(work, model):
    before = (model/'unet'/'diffusion_pytorch_model.safetensors').stat().st_mtime_ns
    r = latentfast('train', work/'store', model, '--perceptual', work/'clf', *TRAIN)
    assert 'trained already' in r.stdout and (model/'unet'/'diffusion_pytorch_model.safetensors').stat().st_mtime_ns==before

def test_bad_input_costs_one_line(work, model, tmp_path):
    empty, other = tmp_path/'empty', tmp_path/'other'
    empty.mkdir(); other.mkdir(); (other/'thesis.docx').write_text('mine')
    store, clf = work/'store', work/'clf'
    for args, says in [
        (('encode', empty, tmp_path/'s'),                              'no pictures'),
        (('encode', tmp_path/'nowhere', tmp_path/'s'),                 'nowhere'),
        (('encode', work/'scenes', tmp_path/'s', '--size', 60),        'multiple of 8'),
        (('encode', work/'scenes', other),                             'something else'),
        (('encode', work/'scenes', tmp_path/'s', '--codec', './none'), 'no folder'),
        (('info', empty),                                              'no latent store'),
        (('train', store, other, *TRAIN),                              'something else'),
        (('train', store, model, '--epochs', 4, '--size', 'tiny'),     'other arguments'),
        (('train', store, tmp_path/'m', '--unet', 'huge'),             'tiny, small'),
        (('train', store, tmp_path/'m', '--objective', 'w'),           'eps, v'),
        (('train', store, tmp_path/'m', '--perceptual', empty),        'empty'),
        (('train-classifier', tmp_path/'nowhere', tmp_path/'c'),       'no folder'),
        (('sample', empty, tmp_path/'x.png'),                          'model_index.json'),
        (('sample', model, tmp_path/'x.png', '--steps', 0),            'steps'),
        (('sample', model, tmp_path/'x.txt'),                          'picture file'),
        (('sample', model, tmp_path/'x.png', '--size', 33),            'multiple of 8'),
        (('sample', model, tmp_path/'x.png', '--strength', .5),        '--init'),
        (('sample', model, tmp_path/'x.png', '--init', clf/'config.json'), 'no picture'),
        (('sample', model, tmp_path/'x.png', '--video', tmp_path/'x.mp4'), '.webp'),
        (('sample', model, tmp_path/'x.png', '--sampler', 'magic'),    'ddim'),
        (('sample', model, tmp_path/'x.png', '--class', 'red cube'),   'without conditions'),
        (('sample', model, tmp_path/'x.png', '--prompt', 'a dog'),     'prompt'),
        (('train', store, tmp_path/'m', '--cond', 'text'),             'captions'),
        (('train', store, tmp_path/'m', '--prompts', clf/'config.json'), '--cond'),
        (('train', store, tmp_path/'m', '--loss', 'pooled'),           '--loss wants --perceptual'),
        (('train', store, tmp_path/'m', '--cond-drop', .2),            '--cond-drop wants --cond'),
        (('train', store, tmp_path/'m', '--lr', 0),                    '--lr: 0: give a number above 0'),
        (('train', store, tmp_path/'m', '--perceptual', clf, '--weight', -1), '--weight'),
        (('encode', work/'scenes', tmp_path/'s', '--concurrency', 2),  'ray'),
        (('play', model, '--port', 0),                                 '--port'),
        (('train-vae', empty, tmp_path/'c'),                           'no pictures'),
        (('train-vae', work/'scenes', tmp_path/'c', '--epochs', 0),    '--epochs'),
        (('train-vae', work/'scenes', tmp_path/'c', '--size', 30),     'multiple'),
        (('train-vae', work/'scenes', tmp_path/'c', '--batch-size', 0), '--batch-size: 0: give a whole number from 1 on'),
        (('train', store, tmp_path/'m', '--epochs', 2.5),              '--epochs: 2.5: give a whole number'),
        (('train', store, tmp_path/'m', '--lr', 'nan'),                '--lr: nan: give a number'),
        (('train', store, tmp_path/'m', '--seed', -1),                 '--seed: -1: give a whole number from 0 on'),
        (('sample', model, tmp_path/'x.png', '-n', 'few'),             '-n: few: give a whole number from 1 on (latentfast sample --help explains)'),
        (('demo', '--out', other),                                     'something else'),
        (('demo', '--out', tmp_path/'d', '--minutes', -3),             'minutes')]:
        line, = latentfast(*args, check=2).stderr.strip().splitlines()
        assert line.startswith(f'latentfast {args[0]}: ') and says in line, line
        assert not (tmp_path/'m').exists() and not (tmp_path/'c').exists()
    assert (other/'thesis.docx').read_text()=='mine' and len(list(other.iterdir()))==1

def test_bad_pictures_are_skipped_counted_and_listed(work, tmp_path):
    src = tmp_path/'photos'
    for c in 'ab':
        (src/c).mkdir(parents=True)
        for i in range(6): Image.fromarray(np.random.default_rng(i).integers(0, 255, (40,50,3), np.uint8)).save(src/c/f'{i}.jpg')
    whole = (src/'a'/'0.jpg').read_bytes()
    (src/'a'/'cut.jpg').write_bytes(whole[:len(whole)//2]); (src/'b'/'text.png').write_text('no picture')
    latentfast('encode', src, tmp_path/'store', '--size', 32)
    index = json.loads((tmp_path/'store'/'index.json').read_text())
    errors = [json.loads(l) for l in (tmp_path/'store'/'errors.jsonl').read_text().splitlines()]
    assert sum(index['counts'].values())==12 and sorted(e['key'] for e in errors)==['a/cut.jpg','b/text.png'] and all(e['error'] for e in errors)

def test_verify_finds_a_flipped_bit(work, tmp_path):
    import shutil
    store = tmp_path/'store'; shutil.copytree(work/'store', store)
    assert 'every checksum fits' in latentfast('verify', store).stdout
    shard = store/'train-00000.arrow'; b = bytearray(shard.read_bytes()); b[len(b)//2] ^= 1; shard.write_bytes(b)
    assert 'train-00000.arrow' in one_line_error('verify', store)
    r = latentfast('verify', store, '--json', check=2)
    said = json.loads(r.stdout)
    assert said['store']==str(store) and len(said['problems'])==1 and 'train-00000.arrow' in said['problems'][0] and r.stderr.count('\n')==1

def test_a_model_and_a_store_of_different_autoencoders_are_told_apart(work, model, tmp_path, codec_folder):
    latentfast('encode', work/'scenes', tmp_path/'store', '--size', 32, '--codec', codec_folder)
    assert 'AutoencoderKL-' in one_line_error('evaluate', model, tmp_path/'store', '--features', work/'clf', '-n', 8)
    assert 'AutoencoderKL-' in one_line_error('train', tmp_path/'store', tmp_path/'m', '--perceptual', work/'clf', *TRAIN)

@pytest.mark.parametrize('kind', ['kl', 'vq'])
def test_an_autoencoder_of_ones_own_encodes(work, tmp_path, kind):
    args = ['train-vae', work/'scenes', tmp_path/'vae', '--kind', kind, '--size', 32, '--epochs', 2, '--per-epoch', 64, '--batch-size', 16, '--disc-start', 4,
            '--lpips', 'none', '--sample-every', 4]
    assert 'dB on 20 held-out pictures' in latentfast(*args).stdout and len(list((tmp_path/'vae'/'progress').iterdir()))==2
    latentfast('encode', work/'scenes', tmp_path/'store', '--size', 32, '--codec', tmp_path/'vae')
    assert str(tmp_path/'vae') in latentfast('info', tmp_path/'store').stdout
    assert 'trained already' in latentfast(*args).stdout and 'other arguments' in one_line_error(*args, '--lr', .1)

def test_the_large_recipe_goes_on_with_an_autoencoder(work, codec_folder, tmp_path):
    r = latentfast('train-vae', work/'scenes', tmp_path/'vae', '--model', 'ldm', '--start', codec_folder, '--size', 32, '--epochs', 1, '--per-epoch', 16, '--batch-size', 8,
                   '--lpips', 'none')
    assert 'held-out pictures' in r.stdout

def test_a_distance_of_ones_own_trains_an_autoencoder(work, tmp_path):
    args = ['--net', 'tiny', '--size', 32, '--triplets', 60, '--epochs', 1]
    assert 'of the time' in latentfast('train-lpips', work/'scenes', tmp_path/'distance', *args).stdout
    latentfast('train-vae', work/'scenes', tmp_path/'vae', '--lpips', tmp_path/'distance', '--size', 32, '--epochs', 1, '--per-epoch', 32, '--batch-size', 16)
    assert (tmp_path/'vae'/'config.json').exists()

PROMPTS = 'a small red cube', 'a large blue cone'

@pytest.fixture(scope='module')
def told(work):
    "A folder with models that were told a class, a text and a picture, and with a file of prompts"
    (work/'prompts.txt').write_text('\n\n'.join(PROMPTS))
    latentfast('encode', work/'scenes', work/'captioned', '--size', 32, '--captions', work/'scenes'/'scenes.jsonl')
    latentfast('encode', work/'scenes', work/'small', '--size', 16)
    once = [*TRAIN, '--epochs', 1, '--sample-every', 1]
    latentfast('train', work/'store', work/'by-class', '--cond', 'class', '--keep-weak', *once)
    latentfast('train', work/'captioned', work/'by-text', '--cond', 'text', '--prompts', work/'prompts.txt', *once)
    latentfast('train', work/'store', work/'by-picture', '--cond', work/'small', *once)
    return work

def drawn(model, *args, n=2):
    "The pictures [n,H,W,3] of a `sample` that has no word to ignore"
    with tempfile.TemporaryDirectory() as tmp:
        r = latentfast('sample', model, Path(tmp)/'new', '-n', n, '--steps', 3, *args)
        assert 'does nothing' not in r.stderr and len(names := sorted((Path(tmp)/'new').iterdir()))==n
        return np.stack([np.asarray(Image.open(f)).astype(int) for f in names])

def test_a_class_is_drawn(told, model):
    red = CLASSES.index('red cube')
    ours = drawn(told/'by-class', '--class', 'red cube')
    assert (ours==drawn(told/'by-class', '--class', red)).all() and (ours!=drawn(told/'by-class', '--class', 'blue cone')).any()
    assert (drawn(model)!=drawn(model, '--class', 'red cube', '--classifier', told/'clf')).any()
    assert 'red cube' in one_line_error('sample', told/'by-class', told/'x.png', '--class', 'red dog')

def test_a_picture_is_drawn_by_itself_and_away_from_a_weaker_model(told, model):
    assert (drawn(model, '--first', 1, n=1)==drawn(model)[1:]).all()
    assert (drawn(model)!=drawn(model, '--weak', told/'by-class')).any()

def test_a_model_is_guided_by_its_own_early_average(told, model):
    asked = '--class', 'red cube', '--guidance-scale'
    away = drawn(told/'by-class', *asked, 2, '--weak')
    assert (drawn(told/'by-class', *asked, 1)!=away).any() and (drawn(told/'by-class', *asked, 2, '--weak', '--guidance-interval', 0, 1)!=away).any()
    assert 'KeepWeak' in one_line_error('sample', model, told/'x.png', '--weak')
    plain, away = (json.loads(latentfast('evaluate', told/'by-class', told/'store', '-n', 20, '--steps', 2, '--json', *more).stdout)['fid'] for more in ([], ['--weak']))
    assert plain!=away

def test_prompts_are_drawn(told):
    assert (told/'by-text'/'progress'/'strip.png').exists()
    both = drawn(told/'by-text', '--prompt', PROMPTS[0], '--prompt', PROMPTS[1])
    assert (both==drawn(told/'by-text', '--prompts', told/'prompts.txt')).all()
    one, away = (drawn(told/'by-text', '--prompt', PROMPTS[0], *o) for o in ((), ('--negative-prompt', 'a sphere')))
    assert (both[0]==one[0]).mean()>.9 and (both[1]!=one[1]).any() and (one!=away).any()
    assert (drawn(told/'by-text')!=drawn(told/'by-text', '--negative-prompt', 'a sphere')).any()
    assert '-n 1' in one_line_error('sample', told/'by-text', told/'x.png', '-n', 1, '--prompts', told/'prompts.txt')

def test_pictures_are_drawn_from(told, model, tmp_path):
    scene = sorted((told/'scenes').rglob('*.png'))[0]
    truth, half = np.asarray(Image.open(scene)).astype(int), np.zeros((32,32), np.uint8); half[:,16:] = 255
    Image.fromarray(half).save(tmp_path/'half.png')
    assert (drawn(told/'by-picture')!=drawn(told/'by-picture', '--cond-image', scene)).any()
    a, b = (np.abs(drawn(model, '--init', scene, '--strength', s)-truth).mean() for s in (.4, 1))
    assert a<.85*b
    masked = drawn(model, '--init', scene, '--mask', tmp_path/'half.png', '--strip', tmp_path/'strip.png')
    assert np.abs(masked-truth)[:,:,:16].max()<=1 and np.abs(masked-truth)[:,:,16:].mean()>5
    with Image.open(tmp_path/'strip.png') as im: assert im.size==(3*34-2, 2*34-2)
    Image.new('RGBA', (32,32), (0,0,0,0)).save(tmp_path/'clear.png'); Image.new('RGB', (32,32), 'white').save(tmp_path/'white.png')
    clear, white = (drawn(model, '--init', tmp_path/f'{c}.png') for c in ('clear','white'))
    assert (clear==white).all()

def test_how_pictures_are_drawn(model, tmp_path):
    plain = drawn(model)
    assert drawn(model, '--size', 64, '--tile').shape==(2,64,64,3)
    assert (plain==drawn(model, '--batch-size', 1)).mean()>.99
    for args in (('--eta',.5), ('--sampler','ddpm'), ('--spacing','leading'), ('--t-max',.9), ('--seed',1)): assert (plain!=drawn(model, *args)).any(), args
    out = tmp_path/'out'
    for n in (1,2): latentfast('sample', model, out, '-n', n, '--steps', 2)
    assert 'other pictures than these 1' in one_line_error('sample', model, out, '-n', 1) and sorted(f.name for f in out.iterdir())==['00000.png','00001.png']

def test_figures_for_scripts(work):
    assert json.loads(latentfast('info', work/'store', '--json').stdout)['counts']=={'train': 180, 'valid': 20}
    assert json.loads(latentfast('verify', work/'store', '--json').stdout)['problems']==[]

def test_what_a_file_manager_leaves_is_no_content(work, model, tmp_path):
    for folder in ('c', 'pngs'): (tmp_path/folder).mkdir(); (tmp_path/folder/'.DS_Store').touch(); (tmp_path/folder/'Thumbs.db').touch()
    from latentfast.cli import _claim
    assert not _claim(tmp_path/'c', 'train', {})
    latentfast('sample', model, tmp_path/'pngs', '-n', 2, '--steps', 1); latentfast('sample', model, tmp_path/'pngs', '-n', 2, '--steps', 1)

def test_memory_that_runs_out_costs_one_line(monkeypatch, capsys):
    import torch
    from latentfast import cli
    def func(a): raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.')
    monkeypatch.setitem(cli.COMMANDS, 'info', (func, *cli.COMMANDS['info'][1:]))
    assert cli.main(['info', 'x'])==2 and 'smaller --batch-size' in (said := capsys.readouterr().err) and said.count('\n')==1

def test_the_folder_of_an_autoencoder_is_found_from_elsewhere(work, tmp_path, codec_folder, monkeypatch):
    import shutil
    from latentfast.data import latent_dls
    shutil.copytree(codec_folder, tmp_path/'runs'/'vae'); monkeypatch.chdir(tmp_path)
    latentfast('encode', work/'scenes', 'out/store', '--size', 32, '--codec', 'runs/vae')
    monkeypatch.chdir(work)
    dls = latent_dls(tmp_path/'out'/'store', bs=16)
    assert dls.store.codec=='runs/vae' and dls.codec.fingerprint==dls.store.fingerprint

def test_a_small_store_gets_more_epochs_unless_asked(work):
    from latentfast.cli import _fill_epochs, parser
    from latentfast.store import LatentStore
    store = LatentStore(work/'store')
    n = store.index['counts']['train']
    for extra,epochs in (([], -(-3000//(n//8))), (['--epochs','7'], 7)):
        a = parser().parse_args(['train', str(work/'store'), 'm', '--batch-size', '8', *extra]); _fill_epochs(a, store, 20, 3000)
        assert a.epochs==epochs
    a = parser().parse_args(['train', str(work/'store'), 'm']); _fill_epochs(a, store, 20, 10)
    assert a.epochs==20

def test_the_installed_command_ends_a_mistake_with_status_2():
    r = subprocess.run([*RUN, 'info', 'nowhere'], capture_output=True, text=True, env=ENV)
    assert r.returncode==2 and r.stdout=='' and r.stderr.count('\n')==1 and 'nowhere' in r.stderr

def test_every_command_explains_itself_with_defaults():
    top = latentfast('--help').stdout
    assert latentfast().stdout==top
    commands = re.findall(r'^    ([a-z][a-z-]+)(?: |$)', top, flags=re.M)
    assert {'demo','encode','info','verify','train-vae','train-lpips','train-classifier','train','sample','evaluate'} <= set(commands)
    for c in commands: assert 'usage: latentfast '+c in latentfast(c, '--help').stdout
    assert '(default: 64)' in latentfast('sample', '--help').stdout
