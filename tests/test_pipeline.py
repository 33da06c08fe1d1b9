"The saved model: what the notebook 12_pipeline shows, by hand, in corners, and when it goes wrong."
import inspect, json, shutil
from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import patch as replaced
import numpy as np, pytest, torch
from PIL import Image, ImageOps
from latentfast.guidance import Autoguided
from latentfast.pipeline import LatentDiffusionPipeline, model_card
from latentfast.sampling import sample
from latentfast.unet import LatentUNet

WEIGHTS = 'diffusion_pytorch_model.safetensors'
TWO = ['a large red cube','a small blue cone']

def shaken(**kw):
    "A small U-Net whose answers are not 0"
    state = torch.get_rng_state(); torch.manual_seed(0)
    unet = LatentUNet(nfs=(16,32), head_dim=16, **kw)
    with torch.no_grad():
        for p in unet.parameters(): p.add_(.02*torch.randn_like(p))
    torch.set_rng_state(state)
    return unet

def load(folder, **kw):
    pipe = LatentDiffusionPipeline.from_pretrained(folder, **kw)
    pipe.set_progress_bar_config(disable=True)
    return pipe

def close(a, b, eps): return a.shape==b.shape and (a-b).abs().max().item() < eps
def pixels(p): return np.array(p).astype(int)
def by_hand(net, n, steps, **kw):
    return sample(net, n, steps, shape=(4,8,8), schedule='cosine', objective='v', progress=False, **kw)

@pytest.fixture(scope='module')
def store(tmp_path_factory):
    from latentfast.encode import encode
    from latentfast.scenes import make_scenes
    tmp = tmp_path_factory.mktemp('data')
    scenes = make_scenes(tmp/'scenes', 160, size=64, workers=0, progress=False)
    return encode(scenes, tmp/'store', codec='tiny', size=64, captions=scenes/'scenes.jsonl', progress=False)

@pytest.fixture(scope='module')
def learn(store):
    from latentfast.data import latent_dls
    from latentfast.training import diffusion_learner
    learn = diffusion_learner(latent_dls(store, bs=32, seed=0), shaken(), weighting=None, seed=0, ema=.5)
    learn.fit_quietly(1, 4e-3, progress=False)
    return learn

@pytest.fixture(scope='module')
def early(learn):
    from latentfast.training import diffusion_learner
    return diffusion_learner(learn.dls, shaken(), weighting=None, seed=0, ema=None)

@pytest.fixture(scope='module')
def folder(learn, tmp_path_factory): return learn.export_pipeline(tmp_path_factory.mktemp('model')/'model', samples=4)

@pytest.fixture(scope='module')
def pipe(folder): return load(folder)

@pytest.fixture
def bad(folder, tmp_path): return shutil.copytree(folder, tmp_path/'bad')

@pytest.fixture(scope='module')
def classifier(learn):
    from latentfast.classifier import classifier_learner
    return classifier_learner(learn.dls, arch='tiny', seed=0).model.eval()

@pytest.fixture(scope='module')
def photo():
    from latentfast.scenes import random_scene, render_scene
    return Image.fromarray(render_scene(random_scene(10**6+3), 96))

def told_learner(store, epochs, seed=0):
    "A learner that is told classes, captions and pictures"
    from latentfast.conditioning import ClassCondition, PictureCondition, WordCondition
    from latentfast.data import latent_dls
    from latentfast.training import diffusion_learner
    conds = [ClassCondition(store), WordCondition(store, dim=32), PictureCondition(store, store)]
    unet = shaken(**{k: v for c in conds for k,v in c.unet.items()})
    learn = diffusion_learner(latent_dls(store, bs=32, cond=conds, seed=0), unet, seed=seed, ema=None)
    learn.fit_quietly(epochs, 4e-3, progress=False)
    return learn

@pytest.fixture(scope='module')
def told(store): return told_learner(store, 3)

@pytest.fixture(scope='module')
def told_folder(told, tmp_path_factory): return told.export_pipeline(tmp_path_factory.mktemp('told')/'model')

@pytest.fixture(scope='module')
def asked(told_folder): return load(told_folder)

@pytest.fixture(scope='module')
def less(store): return told_learner(store, 1, seed=1)

@pytest.fixture(scope='module')
def less_folder(less, tmp_path_factory): return less.export_pipeline(tmp_path_factory.mktemp('less')/'model')

def test_diffusers_finds_the_parts_and_the_arguments(pipe):
    modules, options = pipe._get_signature_keys(pipe)
    assert set(modules)=={'unet','vae','scheduler','weak_unet'} and {'latents_mean','classes','facts','prompt_encoder'} <= set(options)
    assert set(pipe.components)==set(modules)|set(options)
    args = list(inspect.signature(pipe.__call__).parameters)
    assert args[:5]==['batch_size','num_inference_steps','seed','eta','sampler'] and args[-2:]==['width','kwargs']
    assert list(inspect.signature(LatentDiffusionPipeline.from_pretrained).parameters)==['folder','kwargs']
    assert not pipe(1, num_inference_steps=1, output_type='latent').images.requires_grad

def test_a_pipeline_of_another_class_is_not_opened(folder):
    class Mine(LatentDiffusionPipeline): pass
    with pytest.raises(ValueError, match='is a LatentDiffusionPipeline, not a Mine'): Mine.from_pretrained(folder)

def test_the_folder_gives_the_learners_pictures(learn, pipe, store):
    assert close(pipe(4, num_inference_steps=5, seed=1, output_type='pt').images, learn.sample(4, steps=5, seed=1, progress=False), 1e-4)
    assert pipe.classes==store.classes and pipe.objective=='v' and pipe.config.facts['weighting of noise levels']=='none'

# Steps, seeds and schedulers

def test_a_callback_sees_each_step_and_may_change_the_latents(pipe):
    seen, last = [], []
    def halve(p, i, t, kw):
        seen.append((p is pipe, i, int(t), tuple(kw['latents'].shape)))
        return dict(latents=kw['latents']*0) if i==4 else {}
    z = pipe(2, num_inference_steps=5, sampler='ddim', seed=1, output_type='latent', callback_on_step_end=halve).images
    assert seen==[(True, i, k, (2,4,8,8)) for i,k in enumerate((999,799,599,399,199))] and torch.equal(z, torch.zeros_like(z))
    pipe(1, num_inference_steps=3, sampler='ddim', seed=1, callback_on_step_end=lambda p, i, t, kw: last.append(kw),
         callback_on_step_end_tensor_inputs=['latents','x0'])
    assert [sorted(o) for o in last]==[['latents','x0']]*3 and close(last[-1]['x0'], last[-1]['latents'], 1e-5)
    assert (last[0]['x0']-last[0]['latents']).abs().max() > .1

def test_a_generator_stands_for_a_seed(pipe):
    def draw(s): return pipe(1, num_inference_steps=3, generator=torch.Generator().manual_seed(s), output_type='np', return_dict=False)[0]
    a,b,c = draw(3),draw(3),draw(4)
    assert np.array_equal(a, b) and (a!=c).any()

def test_tiles_change_nothing(pipe):
    a,b = (pipe(2, num_inference_steps=3, seed=1, output_type='pt', tile=t).images for t in (8,False))
    assert close(a, b, 1e-3)

def test_another_scheduler_is_the_sampler_that_it_stands_for(pipe, folder):
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, LMSDiscreteScheduler
    twin = LatentDiffusionPipeline(**pipe.components); twin.set_progress_bar_config(disable=True)
    assert twin.unet is pipe.unet and {**twin.config, '_name_or_path': ''}=={**pipe.config, '_name_or_path': ''}
    def draw(p, **kw): return p(2, num_inference_steps=4, seed=1, output_type='latent', **kw).images
    heun, drawn = draw(pipe, sampler='heun'), []
    assert torch.equal(draw(twin), draw(pipe))
    for cls,name in (DDIMScheduler,'ddim'),(DPMSolverMultistepScheduler,'dpm++'),(EulerAncestralDiscreteScheduler,'euler_a'):
        twin.scheduler = cls.from_config(pipe.scheduler.config)
        want = draw(pipe, sampler=name); drawn.append(want)
        assert torch.equal(draw(twin), want) and torch.equal(draw(twin, sampler='heun'), heun), name
        assert torch.equal(twin.sample_latents(2, steps=4, seed=1, progress=False), want), name
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], heun)
    chosen = load(folder, scheduler=DDIMScheduler.from_config(pipe.scheduler.config))
    assert torch.equal(draw(chosen), drawn[0])
    twin.scheduler = LMSDiscreteScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(ValueError, match='no sampler like LMSDiscreteScheduler'): draw(twin)
    twin.scheduler = DDIMScheduler(beta_schedule='linear')
    with pytest.raises(ValueError, match="not the schedule 'cosine'"): draw(twin)

# Pictures in

def test_a_picture_and_its_mask_are_cut_alike(pipe, photo):
    wide, side = Image.fromarray(np.concatenate([np.array(photo)]*2, 1)).resize((96,64)), np.zeros((64,96), np.uint8)
    side[:,40:] = 255
    new = pixels(pipe(image=wide, mask_image=Image.fromarray(side), num_inference_steps=10, seed=1).images[0])
    was = pixels(ImageOps.fit(wide, (64,64), Image.Resampling.LANCZOS))
    assert (new[:,:24]==was[:,:24]).all() and (new!=was)[:,24:].any((0,2)).all()

def test_pictures_are_read_as_for_training(pipe, photo):
    lying = photo.transpose(Image.Transpose.ROTATE_90); lying.getexif()[274] = 6
    assert torch.equal(pipe.encode(lying)[1], pipe.encode(photo)[1])
    assert torch.equal(pipe.encode(Image.new('RGBA', (64,64), (255,0,0,0)))[1], torch.ones(1,3,64,64))
    assert torch.equal(pipe.encode([np.array(photo)]*2)[0], pipe.encode([photo]*2)[0])
    x = pipe.encode([photo]*2)[1]
    for same in x, list(x): assert torch.equal(pipe.encode(same)[1], x)
    assert torch.equal(pipe.encode(x[0])[1], x[:1])

def test_the_bar_knows_how_many_steps_a_weak_noise_leaves(pipe, photo):
    bars = []
    def bar(total): bars.append(total); return nullcontext(SimpleNamespace(update=lambda: bars.append(1)))
    with replaced.object(pipe, 'progress_bar', bar):
        pipe(3, image=photo, strength=.005, num_inference_steps=30, slice_size=2, output_type='latent')
    assert bars[0]==sum(bars[1:]) and 0 < bars[0] < 60

# Guides

def test_a_classifier_is_told_a_class_by_name_or_number(pipe, store, classifier):
    kw = dict(seed=0, num_inference_steps=2, classifier=classifier, output_type='np')
    a,b,c = (pipe(2, label=l, **kw).images for l in ('red cube', store.classes.index('red cube'), 'blue cone'))
    assert np.array_equal(a, b) and (a!=c).any()

def test_the_card_tells_how_a_told_model_is_asked(asked):
    assert "prompt='...'" in model_card(asked) and 'text-to-image' in model_card(asked)

def test_autoguidance_is_that_of_the_two_networks(pipe, early, tmp_path):
    ask = dict(num_inference_steps=10, seed=2, output_type='latent', precision=None)
    weak = early.export_pipeline(tmp_path/'early')
    apart = [pipe(6, weak=weak, guidance_scale=s, **ask).images for s in (1.5,3.)]
    hand = by_hand(Autoguided(pipe.unet, early.model, 3.), 6, 10, seed=2, precision=None)
    assert close(apart[1], hand, 1e-3) and (apart[1]-apart[0]).abs().max() > 1e-2
    assert close(pipe(6, weak=early.model, guidance_scale=1.5, **ask).images, apart[0], 1e-4)
    assert close(pipe(6, weak=early.model, **ask).images, apart[0], 1e-4)  # 1.5 if nothing is said

def test_a_pipeline_holds_copies(early):
    own = early.to_pipeline().to(torch.float16)
    assert {p.dtype for p in own.unet.parameters()}=={torch.float16}
    assert {p.dtype for m in (early.model, early.dls.codec.model) for p in m.parameters()}=={torch.float32}

@pytest.fixture(scope='module')
def kept(learn):
    from latentfast.training import KeepWeak, diffusion_learner
    kept = diffusion_learner(learn.dls, shaken(), seed=0, cbs=KeepWeak(.3))
    kept.fit_quietly(1, 4e-3, progress=False)
    return kept

def test_a_kept_weak_model_is_saved_with_its_own(kept, pipe, tmp_path):
    guided = load(kept.export_pipeline(tmp_path/'kept'))
    assert all(torch.equal(a, b) for a,b in zip(guided.weak_unet.parameters(), kept.weak_model.parameters(), strict=True))
    ask, way = dict(num_inference_steps=4, seed=2, output_type='latent', precision=None), dict(steps=4, seed=2, progress=False, precision=None)
    z = guided(2, weak=True, guidance_scale=2., **ask).images
    for o in (kept,guided): assert close(o.sample_latents(2, weak=True, guidance_scale=2., **way), z, 1e-4)
    assert (z-guided(2, **ask).images).abs().max() > 1e-3
    guided.save_pretrained(tmp_path/'again')
    assert torch.equal(load(tmp_path/'again')(2, weak=True, guidance_scale=2., **ask).images, z)
    with pytest.raises(ValueError, match='KeepWeak'): pipe(2, weak=True, guidance_scale=2.)
    (tmp_path/'kept'/'weak_unet'/WEIGHTS).unlink()
    with pytest.raises(ValueError, match='could not be loaded'): load(tmp_path/'kept')

def test_a_killed_export_over_another_model_leaves_none(learn, bad, pipe):
    with replaced.object(type(pipe.vae), 'save_pretrained', side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt): learn.export_pipeline(bad)
    with pytest.raises(FileNotFoundError, match='no model_index.json'): load(bad)

def test_weak_models_of_other_latents_are_refused(pipe):
    other = LatentDiffusionPipeline(pipe.unet, pipe.vae, pipe.scheduler, latents_mean=[1.]*4, codec_fingerprint=pipe.codec.fingerprint)
    with pytest.raises(ValueError, match=r'its latents_mean is \[1.0'): pipe(1, weak=other, guidance_scale=2.)

# What is asked for

def wish(photo): return dict(label='red cube', prompt=TWO, cond_image=photo)
KW = dict(num_inference_steps=4, seed=1, output_type='latent')

def test_a_call_tells_what_the_learner_would(asked, told, photo):
    a, maps = asked(**wish(photo), guidance_scale=2., **KW).images, asked.conditions(1, cond_image=photo)['cond']['picture']
    b = told.sample_latents(2, cond=dict(label='red cube', prompt=TWO, picture=maps), guidance_scale=2., steps=4, seed=1, progress=False)
    assert a.shape==(2,4,8,8) and close(a, b, 1e-3)

def test_each_condition_counts(asked, photo):
    nothing = asked(1, **KW).images
    for one in (dict(label='blue cone'), dict(prompt='a green sphere'), dict(cond_image=photo)):
        assert (asked(1, **one, **KW).images-nothing).abs().max() > 1e-4, one
    a,b = asked('a cube', negative_prompt='red', guidance_scale=3., **KW).images, asked(1, prompt='a cube', guidance_scale=3., **KW).images
    assert (a-b).abs().max() > 1e-4

def test_prompts_may_come_first_and_several_times(asked):
    assert torch.equal(asked(TWO, **KW).images, asked(prompt=TWO, **KW).images)
    many = asked(TWO, num_images_per_prompt=2, height=64, width=64, **KW).images
    assert torch.equal(many, asked(prompt=[o for o in TWO for _ in range(2)], **KW).images) and len(many)==4

def test_two_told_networks_are_each_told_in_their_own_way(asked, less, less_folder, store, photo):
    maps, told = asked.conditions(1, cond_image=photo)['cond']['picture'].expand(2, -1, -1, -1), []
    for p in asked, load(less_folder):
        words = p.conditions(2, prompt=TWO)['cond']
        told.append(dict(label=torch.tensor([store.classes.index('red cube')]*2), picture=maps, **words))
    nets = [lambda x,k,net=net,c=c: net(x, k, c).sample for net,c in zip((asked.unet, less.model.eval()), told)]
    hand = by_hand(Autoguided(*nets, 2.), 2, 4, seed=1)
    for n in (64,1): assert close(asked(weak=less_folder, guidance_scale=2., precision=None, slice_size=n, **wish(photo), **KW).images, hand, 1e-3)
    assert (asked(precision=None, guidance_scale=1., **wish(photo), **KW).images-hand).abs().max() > 1e-3

def test_the_picture_of_a_condition_grows_with_what_is_made(asked, photo):
    assert asked.conditions(1, cond_image=photo, size=128)['cond']['picture'].shape==(1,4,16,16)
    with pytest.raises(ValueError, match='have 3 channels'): asked(1, cond_image=torch.zeros(3,8,8))

def test_a_told_model_is_inverted_with_what_it_is_told(asked, photo):
    noise = asked.invert([photo]*2, 10, **wish(photo))
    again = asked(latents=noise, sampler='ddim', num_inference_steps=10, guidance_scale=1., output_type='latent', precision=None, **wish(photo)).images
    assert close(again, asked.encode([photo]*2)[0], .3) and (noise[0]-noise[1]).abs().max() > 1e-3

@pytest.mark.parametrize('kw,says', [
    (dict(label='red dog'), "'red dog'"), (dict(label=[1,2]), '2 classes'), (dict(prompt=['a','b']), '2 texts')])
def test_a_told_model_says_what_it_cant_be_told(asked, kw, says):
    with pytest.raises(ValueError, match=says): asked(1, **kw)

def test_what_contradicts_itself_is_refused(asked, classifier, less_folder):
    for says,kw in (('Two prompts', dict(prompt='a')), ('leave out prompt=', dict(classifier=classifier, label=1)),
                    ('leave out one', dict(weak=less_folder, negative_prompt='red'))):
        with pytest.raises(ValueError, match=says): asked('a cube', **kw)
    for k in 'prompt','negative_prompt','cond_image','weak':
        with pytest.raises(ValueError, match=f'leave out {k}='): asked(1, classifier=classifier, label=1, **{k: 'a cube'})

# Saving and loading

def test_pictures_and_the_wish_for_privacy_reach_the_hub(pipe, tmp_path):
    import huggingface_hub
    from diffusers.utils import hub_utils
    cloud, said = tmp_path/'cloud', {}
    def upload(repo_id, folder_path, **kw): said.update(kw); shutil.copytree(folder_path, cloud/repo_id); return repo_id
    def download(repo_id, allow_patterns, **kw): said.update(kw, fetched=allow_patterns); return str(cloud/repo_id)
    def create(repo_id, **kw): said.update(kw); return huggingface_hub.RepoUrl(f'https://huggingface.co/{repo_id}')
    with replaced.object(huggingface_hub, 'create_repo', create), replaced.object(hub_utils, 'upload_folder', upload):
        assert pipe.push_to_hub('someone/scenes', samples=4)=='someone/scenes'
        pipe.save_pretrained(tmp_path/'again', push_to_hub=True, repo_id='someone/secret', private=True, token='hf_x', commit_message='first')
    assert [said[k] for k in ('private','token','commit_message')]==[True,'hf_x','first'] and (cloud/'someone/secret/model_index.json').exists()
    with replaced.object(huggingface_hub, 'snapshot_download', download): p = load('someone/scenes', revision='v1')
    assert said['revision']=='v1' and said['fetched']==['*.json','*.safetensors']
    kw = dict(num_inference_steps=3, seed=2, output_type='np')
    assert np.array_equal(p(1, **kw).images, pipe(1, **kw).images)
    assert '![samples](samples.png)' in (cloud/'someone/scenes/README.md').read_text(encoding='utf-8') and not list(cloud.rglob('*.bin'))

def test_a_rounded_model_makes_pictures_and_is_not_saved(pipe, bad, tmp_path):
    half = load(bad, torch_dtype=torch.bfloat16)
    assert {p.dtype for m in (half.unet, half.vae) for p in m.parameters()}=={torch.bfloat16}
    kw = dict(num_inference_steps=5, seed=1, output_type='pt')
    assert close(half(2, **kw).images, pipe(2, **kw).images, .2)
    with pytest.raises(ValueError, match='load the model anew'): half.save_pretrained(tmp_path/'half')

def test_a_model_saved_again_loses_the_pictures_of_the_one_before(pipe, bad):
    assert (bad/'samples.png').exists() and 'samples.png' in (bad/'README.md').read_text(encoding='utf-8')
    pipe.save_pretrained(bad)
    assert not (bad/'samples.png').exists() and 'samples.png' not in (bad/'README.md').read_text(encoding='utf-8')

def python_code(bad): (bad/'vae'/'diffusers.py').touch()
def half_a_file(bad): f = bad/'unet'/WEIGHTS; b = f.read_bytes(); f.write_bytes(b[:len(b)//2])
def a_pickle(bad): (bad/'unet'/WEIGHTS).unlink(); torch.save({}, bad/'unet'/'diffusion_pytorch_model.bin')
def other_network(bad): shutil.copy(bad/'vae'/WEIGHTS, bad/'unet'/WEIGHTS)
def other_autoencoder(bad):
    from latentfast.autoencoder import LatentCodec
    vae = LatentCodec.from_pretrained('tiny').model; vae.decoder.conv_out.bias.data += .1
    vae.save_pretrained(bad/'vae')
def other_class(bad):
    f = bad/'model_index.json'
    f.write_text(json.dumps({**json.loads(f.read_text()), 'unet': ['os','system']}))
def no_json(bad): (bad/'model_index.json').write_text('{"_class_name"')

@pytest.mark.parametrize('damage,says', [
    (python_code, r'holds Python code \(vae/diffusers.py\)'), (half_a_file, 'could not be loaded'), (a_pickle, 'could not be loaded'),
    (other_network, 'another network'), (other_autoencoder, 'was trained on latents of'), (other_class, r"\['os', 'system'\]"),
    (no_json, 'not JSON')])
def test_a_damaged_folder_is_refused(bad, damage, says):
    load(bad); damage(bad)
    with pytest.raises(ValueError, match=says): load(bad)

def test_what_is_no_model_is_neither_opened_nor_overwritten(learn, pipe, tmp_path):
    (tmp_path/'letter.txt').write_text('dear')
    with pytest.raises(FileNotFoundError, match='no model_index.json'): load(tmp_path)
    with pytest.raises(FileNotFoundError, match='no model folder'): load('./nowhere')
    with pytest.raises(ValueError, match='holds something else'): learn.export_pipeline(tmp_path)
    with pytest.raises(ValueError, match='holds something else'): learn.export_pipeline(tmp_path/'letter.txt')
    with pytest.raises(ValueError, match='safetensors'): pipe.save_pretrained(tmp_path/'p', safe_serialization=False)
    assert [p.name for p in tmp_path.iterdir()]==['letter.txt']

# What is out of range. 'PHOTO' and 'CLASSIFIER' stand for the fixtures

@pytest.mark.parametrize('says,kw', [
    ('multiple of 8', dict(size=60)), ('multiple of 8', dict(size=0)), ('square', dict(height=64, width=32)),
    ('called num_inference_steps', dict(steps=4)), ('called batch_size', dict(num_images=2)), ('There are batch_size', dict(xyz=2)),
    ('There is no argument steps', dict(steps=3)), ('There is no argument yield_steps', dict(yield_steps=True)),
    ('There is no argument progress', dict(progress=False)),
    ('something to follow: this model', dict(guidance_scale=3.)),
    ('1 to 1000', dict(num_inference_steps=0)), ('1 to 1000', dict(image='PHOTO', strength=.01, num_inference_steps=5000)),
    ('strength=1.5', dict(image='PHOTO', strength=1.5)), ('image=', dict(strength=.5)), ('image=', dict(mask_image='PHOTO')),
    ('is a str', dict(image='photo.png')), ('8×8: it must', dict(image='PHOTO', mask_image=np.zeros((8,8), bool))),
    ('without conditions', dict(label='red cube')), ('without conditions', dict(prompt='a red cube', guidance_scale=3.)),
    ('such pictures', dict(cond_image='PHOTO')),
    ("'red dog'", dict(label='red dog', classifier='CLASSIFIER')), ('2 classes', dict(label=[1,2], classifier='CLASSIFIER')),
    ('0 to 23', dict(label=24, classifier='CLASSIFIER')), ('0 to 23', dict(label=-1, classifier='CLASSIFIER')),
    ('label=', dict(classifier='CLASSIFIER')), ('guidance_rescale', dict(label=1, classifier='CLASSIFIER', guidance_rescale=.5)),
    ("'jpg'", dict(output_type='jpg')), ("'x0'", dict(callback_on_step_end_tensor_inputs=['prompt_embeds'])),
    ('generator', dict(generator=[torch.Generator()])), ('one number', dict(seed=[1,2])),
    ('whole number from 1', dict(num_images_per_prompt=2)), ('whole number from 1', dict(batch_size=None, num_images_per_prompt=0))])
def test_what_is_asked_wrongly_is_said(pipe, photo, classifier, says, kw):
    stand = dict(PHOTO=photo, CLASSIFIER=classifier)
    kw = {k: stand.get(v, v) if isinstance(v, str) else v for k,v in kw.items()}
    with pytest.raises(ValueError, match=says): pipe(**{**dict(batch_size=1, num_inference_steps=2), **kw})
