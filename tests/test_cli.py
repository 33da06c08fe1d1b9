"The command line as a user meets it: with mistakes, Ctrl-C and kills."
import contextlib, io, json, os, re, signal, subprocess, sys, time
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pytest
from PIL import Image
from latentfast.cli import main

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

@pytest.mark.parametrize('sig', [signal.SIGINT, signal.SIGKILL])
def test_interrupted_training_goes_on_to_the_same_weights(work, model, sig):
    out = work/f'broken-{sig.name}'
    args = [*RUN, *map(str, ['train', work/'store', out, '--perceptual', work/'clf', *TRAIN])]
    p = subprocess.Popen(args, stderr=subprocess.PIPE, text=True, env=ENV, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # a job in the background ignores it
    deadline = time.time()+120
    while not (out/'checkpoint.pt').exists() and p.poll() is None and time.time()<deadline: time.sleep(.005)
    p.send_signal(sig); err = p.communicate()[1]
    assert p.returncode==(130 if sig==signal.SIGINT else -9), err
    assert not (out/'model_index.json').exists()
    if sig==signal.SIGINT: assert err.strip().splitlines()[-1]=='latentfast train: interrupted: the same command goes on where it stopped.'
    assert 'model_index.json' in one_line_error('sample', out, work/'x.png')
    subprocess.run(args, check=True, capture_output=True, env=ENV)
    a, b = ((m/'unet'/'diffusion_pytorch_model.safetensors').read_bytes() for m in (model, out))
    assert a==b

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
        (('train', store, tmp_path/'m', '--size', 'huge'),             'tiny, small'),
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
        (('play', model, '--port', 0),                                 '--port'),
        (('train-vae', empty, tmp_path/'c'),                           'no pictures'),
        (('train-vae', work/'scenes', tmp_path/'c', '--epochs', 0),    '--epochs'),
        (('train-vae', work/'scenes', tmp_path/'c', '--size', 30),     'multiple'),
        (('demo', '--out', other),                                     'something else'),
        (('demo', '--out', tmp_path/'d', '--minutes', -3),             'minutes')]:
        line = one_line_error(*args)
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

def test_a_distance_of_ones_own_trains_an_autoencoder(work, tmp_path):
    args = ['--net', 'tiny', '--size', 32, '--triplets', 60, '--epochs', 1]
    assert 'of the time' in latentfast('train-lpips', work/'scenes', tmp_path/'distance', *args).stdout
    latentfast('train-vae', work/'scenes', tmp_path/'vae', '--lpips', tmp_path/'distance', '--size', 32, '--epochs', 1, '--per-epoch', 32, '--batch-size', 16)
    assert (tmp_path/'vae'/'config.json').exists()

def test_a_class_and_a_prompt_are_drawn(work, tmp_path):
    latentfast('train', work/'store', tmp_path/'by-class', '--cond', 'class', '--sample-every', 3, *TRAIN)
    latentfast('encode', work/'scenes', tmp_path/'store', '--size', 32, '--captions', work/'scenes'/'scenes.jsonl')
    (tmp_path/'prompts.txt').write_text('a small red cube\na large blue cone\n')
    latentfast('train', tmp_path/'store', tmp_path/'by-text', '--cond', 'text', '--prompts', tmp_path/'prompts.txt', *TRAIN)
    assert (tmp_path/'by-text'/'progress'/'strip.png').exists()
    for args in (('by-class','--class','red cube'), ('by-text','--prompt','a small red cube','--prompt','a large cone','--negative-prompt','a sphere')):
        latentfast('sample', tmp_path/args[0], tmp_path/'grid.png', '-n', 4, '--steps', 3, *args[1:])
        with Image.open(tmp_path/'grid.png') as im: assert np.asarray(im).std() > 2
    assert 'red cube' in one_line_error('sample', tmp_path/'by-class', tmp_path/'x.png', '--class', 'red dog')
    assert '-n 1' in one_line_error('sample', tmp_path/'by-text', tmp_path/'x.png', '-n', 1, '--prompts', tmp_path/'prompts.txt')

def test_figures_for_scripts(work):
    assert json.loads(latentfast('info', work/'store', '--json').stdout)['counts']=={'train': 180, 'valid': 20}
    assert json.loads(latentfast('verify', work/'store', '--json').stdout)['problems']==[]

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
