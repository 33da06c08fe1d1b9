"Seeds, saved models and their mistakes, where more than one process or a damaged file is needed."
import json, os, shutil, subprocess, sys
import numpy as np, pytest, torch
from latentfast.sampling import SAMPLERS, initial_noise, sample
from latentfast.unet import LatentUNet

ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1'}

def make_unet(seed=0):
    "A small U-Net whose answers are not 0. Its attention is over 16 places: with 4, and one sample, bf16 is rounded otherwise"
    state = torch.get_rng_state(); torch.manual_seed(seed)
    unet = LatentUNet(nfs=(16,32), attn_levels=(0,), head_dim=16, sample_size=4)
    with torch.no_grad():
        for p in unet.parameters(): p.add_(.05*torch.randn_like(p))
    torch.set_rng_state(state)
    return unet.eval()

@pytest.fixture(scope='module')
def unet(): return make_unet()

@pytest.fixture(scope='module')
def saved(unet, codec, tmp_path_factory):
    "A folder with a saved pipeline"
    from latentfast.pipeline import LatentDiffusionPipeline
    from latentfast.schedule import diffusers_scheduler
    pipe = LatentDiffusionPipeline(unet, codec.model, diffusers_scheduler(), objective='v',
                                   latents_mean=[.1,.2,.3,.4], latents_std=[1.,2.,3.,4.], latent_shape=[4,4,4],
                                   codec_fingerprint=codec.fingerprint, classes=[f'class {i}' for i in range(12)], facts=dict(epochs=3))
    folder = tmp_path_factory.mktemp('saved')/'model'
    pipe.save_pretrained(folder, samples=4)
    return folder

def load(folder):
    from latentfast.pipeline import LatentDiffusionPipeline
    pipe = LatentDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe

@pytest.fixture(scope='module')
def pipe(saved): return load(saved)

@pytest.mark.parametrize('precision', ['auto', None])
@pytest.mark.parametrize('sampler', SAMPLERS)
def test_a_seed_gives_the_same_samples_whatever_the_batch_and_the_start(unet, sampler, precision):
    if precision=='auto' and torch.cuda.is_available(): pytest.skip('half precision may round differently there with another batch size')
    def go(n, seed=5, **kw): return sample(unet, n, 3, sampler, seed=seed, progress=False, precision=precision, **kw)
    x = go(64)
    def same(a, b): return (a-b).abs().max() < 3e-5*x.abs().max()  # below 1e-4 for all but heun, whose samples go up to 20 here
    for bs,n in (1,10), (7,64): assert same(go(n, batch_size=bs), x[:n])
    assert same(go(1, start=7), go(10)[7:8]) and same(go(1, start=63), x[63:])
    assert same(torch.cat([go(32), go(32, start=32)]), x)
    assert (x[0]-x[1]).abs().max() > .1 and (go(2, seed=6)-x[:2]).abs().max() > .1

def test_convolutions_with_fewer_multiplications_round_otherwise_and_no_more():
    "From 32 samples at a time a wide network takes them; see the notebook winograd"
    torch.manual_seed(0); wide = LatentUNet(nfs=(64,), sample_size=8)
    with torch.no_grad():
        for p in wide.parameters(): p.add_(.02*torch.randn_like(p))
    x,y = (sample(wide, 33, 10, seed=0, batch_size=bs, precision=None, progress=False) for bs in (33,16))
    assert 0 < (x-y).abs().max() < 1e-3*x.abs().max()
    assert all(p.is_contiguous() for p in wide.parameters()), 'sampling has changed how the weights lie in memory'

@pytest.mark.parametrize('sampler', ['unipc','dpm++sde'])
def test_pictures_are_the_same_whatever_the_slice_and_the_start(pipe, sampler):
    def go(n, **kw): return pipe(n, num_inference_steps=3, seed=5, sampler=sampler, output_type='np', **kw).images.astype(int)
    x = go(9)
    for n in (1,4): assert abs(go(9, slice_size=n)-x).max() <= 1
    assert abs(go(2, start=7)-x[7:]).max() <= 1 and abs(x[0]-x[1]).max() > 5

def test_a_start_moves_the_seeds_and_not_the_conditions():
    def model(x, k, cond): return x*.1*cond.view(-1,1,1,1)
    kw = dict(steps=3, seed=0, shape=(4,4,4), schedule='cosine', objective='v', progress=False)
    c, init = torch.arange(6.), torch.randn(6,4,4,4)
    part, whole = ([*sample(model, n, cond=c[i:], init=init[i:], start=i, batch_size=2, yield_steps=True, **kw)] for n,i in ((2,4),(6,0)))
    assert all(torch.allclose(a, b[4:], atol=1e-5) for a,b in zip(part, whole)) and (part[-1]-whole[-1][:2]).abs().max() > .1

def test_other_random_numbers_make_no_difference(unet):
    torch.manual_seed(0); a = sample(unet, 3, 3, 'ddpm', seed=1, progress=False)
    torch.manual_seed(9); torch.randn(7); state = torch.get_rng_state()
    b = sample(unet, 3, 3, 'ddpm', seed=1, progress=False)
    assert torch.equal(a, b) and torch.equal(torch.get_rng_state(), state)

def test_steps_one_by_one_are_the_same(unet):
    for s in SAMPLERS:
        steps = list(sample(unet, 5, 4, s, seed=2, batch_size=2, progress=False, yield_steps=True))
        assert len(steps)==4 and (steps[-1]-sample(unet, 5, 4, s, seed=2, batch_size=2, progress=False)).abs().max() < 1e-4

def test_guidance_asks_once_a_step_with_twice_the_batch():
    seen = []
    def model(x, k, cond): seen.append((len(x), cond.tolist())); return x*.1*cond.view(-1,1,1,1)
    kw = dict(shape=(4,4,4), schedule='cosine', objective='v', seed=0, progress=False)
    guided = sample(model, 3, 4, cond=torch.tensor([1,2,3]), uncond=0, guidance_scale=2., **kw)
    assert seen==[(6, [0,0,0,1,2,3])]*4
    seen.clear()
    one = sample(model, 3, 4, cond=torch.tensor([1,2,3]), uncond=0, **kw)
    assert seen==[(3, [1,2,3])]*4 and not torch.allclose(one, guided)
    assert torch.equal(one, sample(model, 3, 4, cond=torch.tensor([1,2,3]), **kw))

PICTURE = '''
import socket, sys
def refuse(*args, **kwargs): raise OSError('no network in this test')
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import numpy as np
from latentfast.pipeline import LatentDiffusionPipeline
pipe = LatentDiffusionPipeline.from_pretrained(sys.argv[1])
pipe.set_progress_bar_config(disable=True)
np.save(sys.argv[2], pipe(3, num_inference_steps=5, seed=4, sampler=sys.argv[3], output_type='np').images)
'''

def test_a_saved_folder_gives_the_same_picture_in_a_new_process_without_network(saved, tmp_path, sampler='dpm++sde'):
    r = subprocess.run([sys.executable, '-c', PICTURE, saved, tmp_path/'x.npy', sampler], capture_output=True, text=True, env=ENV)
    assert r.returncode==0, r.stderr
    here = load(saved)(3, num_inference_steps=5, seed=4, sampler=sampler, output_type='np').images
    assert abs(np.load(tmp_path/'x.npy').astype(int)-here.astype(int)).max() <= 1 and here.std() > 5

def test_what_a_folder_says_of_itself(saved):
    from huggingface_hub import ModelCard
    pipe, card = load(saved), ModelCard.load(saved/'README.md')
    assert pipe.classes==[f'class {i}' for i in range(12)] and pipe.objective=='v' and pipe.config.facts==dict(epochs=3)
    assert card.data.library_name=='diffusers' and '| epochs | 3 |' in card.text and (saved/'samples.png').exists()
    assert {p.suffix for p in saved.rglob('*') if p.is_file()} == {'.json','.safetensors','.md','.png'}

def test_the_hub_finds_no_component_among_the_configuration(saved):
    "diffusers takes each list in model_index.json whose first item is a word for a component to download"
    index = json.loads((saved/'model_index.json').read_text())
    assert {k for k,v in index.items() if isinstance(v, list) and v and isinstance(v[0], str)} == {'unet','vae','scheduler'}

def test_an_older_folder_still_loads(saved, tmp_path):
    shutil.copytree(saved, tmp_path/'old')
    path = tmp_path/'old'/'model_index.json'; index = json.loads(path.read_text())
    for k in ('objective','preview','facts'): del index[k]
    index['classes'] = ['cat','dog']; path.write_text(json.dumps(index))
    pipe = load(tmp_path/'old')
    assert pipe.classes==['cat','dog'] and pipe.objective=='v'
    a, b = (p(1, num_inference_steps=2, seed=0, output_type='np').images for p in (pipe, load(saved)))
    assert np.array_equal(a, b)

class Evil:
    def __reduce__(self): return exec, ("open('ran','w').write('yes')",)

def truncated(f): b = f.read_bytes(); f.write_bytes(b[:len(b)//2])
def header(f): b = bytearray(f.read_bytes()); b[:8] = (2**60).to_bytes(8, 'little'); f.write_bytes(b)
def pickled(f): torch.save(dict(a=Evil()), f)
def renamed(f): torch.save(dict(a=Evil()), f.with_suffix('.bin')); f.unlink()
def empty(f): f.write_bytes(b'')

@pytest.mark.parametrize('part', ['unet','vae'])
@pytest.mark.parametrize('damage', [truncated, header, pickled, renamed, empty])
def test_a_damaged_or_pickled_weight_file_is_refused(saved, tmp_path, monkeypatch, part, damage):
    shutil.copytree(saved, tmp_path/'bad'); monkeypatch.chdir(tmp_path)
    damage(next((tmp_path/'bad'/part).glob('*.safetensors')))
    with pytest.raises(ValueError, match='could not be loaded.*safetensors'): load(tmp_path/'bad')
    assert not (tmp_path/'ran').exists()

def test_weights_of_another_network_are_refused(saved, tmp_path):
    shutil.copytree(saved, tmp_path/'bad')
    shutil.copy(saved/'vae'/'diffusion_pytorch_model.safetensors', tmp_path/'bad'/'unet'/'diffusion_pytorch_model.safetensors')
    with pytest.raises(ValueError, match='another network'): load(tmp_path/'bad')

def test_another_autoencoder_is_refused(saved, tmp_path):
    shutil.copytree(saved, tmp_path/'bad')
    f = tmp_path/'bad'/'vae'/'diffusion_pytorch_model.safetensors'
    from safetensors.torch import load_file, save_file
    w = load_file(f); k = next(iter(w)); w[k] = w[k]+.5; save_file(w, f, metadata=dict(format='pt'))
    with pytest.raises(ValueError, match='was trained on latents of'): load(tmp_path/'bad')

@pytest.mark.parametrize('index', [dict(unet=['os','system']), dict(vae=['latentfast.unet','LatentUNet']), dict(unet=None),
                                   dict(scheduler='DDIMScheduler')])
def test_a_folder_names_no_foreign_classes(saved, tmp_path, index):
    shutil.copytree(saved, tmp_path/'bad')
    (tmp_path/'bad'/'model_index.json').write_text(json.dumps({**json.loads((saved/'model_index.json').read_text()), **index}))
    with pytest.raises(ValueError, match='only diffusers'): load(tmp_path/'bad')

def test_a_folder_of_another_pipeline_or_of_none_is_refused(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match='no model_index.json'): load(tmp_path)
    with pytest.raises(FileNotFoundError, match='no model folder'): load(tmp_path/'nowhere')
    for text,says in ('{"_class_name": "LDMPipeline"}','LDMPipeline'), ('[1]','None'), ('{"_class','not JSON'):
        (tmp_path/'model_index.json').write_text(text)
        with pytest.raises(ValueError, match=says): load(tmp_path)

@pytest.mark.parametrize('kw,says', [
    (dict(label='class 12'), "'class 12'"), (dict(label=12), '0 to 11'), (dict(label=-1), '0 to 11'), (dict(label=3), 'without conditions'),
    (dict(size=33), 'multiple of 8'), (dict(size=-8), 'multiple of 8'), (dict(size=24), 'multiples of 2'),
    (dict(num_inference_steps=0), '1 to 1000'),
    (dict(num_inference_steps=1001), '1 to 1000'), (dict(num_inference_steps=2.5), '1 to 1000'), (dict(strength=.5), 'image='),
    (dict(sampler='magic'), 'ddim, ddpm'),
    (dict(eta=2.), 'eta=2.0'), (dict(seed=-1), 'seed=-1'), (dict(batch_size=0), 'n=0'), (dict(slice_size=0), 'batch_size=0'),
    (dict(t_max=1.1), 't_max=1.1'), (dict(precision='half'), 'precision'),
    (dict(image=torch.zeros(1,3,32,32), strength=0.), 'strength=0.0'), (dict(image=torch.zeros(1,3,32,32), strength=1.01), 'strength=1.01'),
    (dict(batch_size=1, image=torch.zeros(2,3,32,32)), '2 were given for 1'),
    (dict(image=torch.zeros(1,3,32,32), mask_image=torch.zeros(30,32)), "the picture's 32×32 pixels")])
def test_what_is_out_of_range_is_said(pipe, kw, says):
    with pytest.raises(ValueError, match=says): pipe(**{**dict(num_inference_steps=2), **kw})

def test_initial_noise_stays_what_it_is():
    "The numbers behind a seed are part of the contract: a change would change everybody's pictures"
    x = initial_noise(3, (2,2), seed=42)
    assert torch.allclose(x.flatten()[:4], torch.tensor(FIRST), atol=1e-5), x.flatten()[:4].tolist()

FIRST = [-.735382, -.252928, .496723, -.650438]
