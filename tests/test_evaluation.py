"Evaluation: against other implementations, on cases with a known answer, in bounded memory, with caches that break, and in training"
import io, json, math, re, shutil, subprocess, sys, weakref
import numpy as np, pytest, torch, torch.nn.functional as F
from PIL import Image
from fastai.interpret import ClassificationInterpretation, Interpretation
from torch import nn
from conftest import make_codec, make_pictures
from latentfast.autoencoder import LatentCodec, to_uint8
from latentfast.callbacks import Checkpoint
from latentfast.classifier import LatentClassifier, classifier_learner
from latentfast.data import latent_dls
from latentfast.encode import encode
from latentfast.evaluation import (FIDMetric, PictureFeatures, _cache_folder, _measure, _mmd, density_coverage, evaluate, feature_net, features, features_id, fid, fid_infinity,
                                   frechet_distance, inception_features, kid, latents_8x8, mean_cov, pixel_learner, precision_recall, show_nearest, timm_features)
from latentfast.pipeline import LatentDiffusionPipeline
from latentfast.report import compare, report_html, table_html
from latentfast.store import LatentStore
from latentfast.training import diffusion_learner

def rand(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
def conv(channels=4, seed=0, nf=8):
    with torch.random.fork_rng():
        torch.manual_seed(seed); return nn.Sequential(nn.Conv2d(channels, nf, 3), nn.ReLU())
def on_pictures(seed=0): return PictureFeatures(conv(3, seed))

# ---- the distances

def test_frechet_distance_of_gaussians_that_share_their_axes():
    "Commuting covariances: the sum of squared differences of means and deviations along the axes"
    q = torch.linalg.qr(rand(12, 12).double())[0]; m1,m2,a,b = rand(4, 12, seed=1).double()
    cov = lambda s: q@(s**2).diag()@q.T
    assert frechet_distance(m1, cov(a), m2, cov(b))==pytest.approx(((m1-m2)**2+(a.abs()-b.abs())**2).sum().item(), rel=1e-9)

def test_fid_is_torchmetrics():
    fidelity = pytest.importorskip('torchmetrics.image.fid').FrechetInceptionDistance
    class Colours(nn.Module):
        num_features = 12
        def forward(self, x): return F.adaptive_avg_pool2d(x.float()/255, 2).flatten(1)
    x, y = (torch.randint(0, 256, (300,3,8,8), dtype=torch.uint8, generator=torch.Generator().manual_seed(s)) for s in (0,1))
    y = (y//2+60).to(torch.uint8)
    theirs = fidelity(feature=Colours()).set_dtype(torch.float64); theirs.update(x, real=True); theirs.update(y, real=False)
    ours = fid(features(Colours(), y), features(Colours(), x))
    assert ours==pytest.approx(theirs.compute().item(), rel=1e-3) and ours>.01

def test_kid_is_torchmetrics():
    poly_mmd = pytest.importorskip('torchmetrics.image.kid').poly_mmd
    x, y = rand(80, 9).double(), rand(80, 9, seed=1).double()*1.3+.2
    assert _mmd(x, y)==pytest.approx(poly_mmd(x, y).item(), rel=1e-9)

def test_kid_of_two_halves_of_one_set_is_0_on_average():
    f, g = torch.cat([rand(200, 16), rand(200, 16, seed=1)*2+1]), torch.Generator().manual_seed(0)
    ks = []
    for _ in range(20): p = torch.randperm(400, generator=g); ks.append(_mmd(f[p[:200]].double(), f[p[200:]].double()))
    assert abs(np.mean(ks)) < 2*np.std(ks, ddof=1)/20**.5 and min(ks)<0<max(ks)

def test_mean_and_covariance_do_not_depend_on_the_batches():
    f = rand(500, 7)*torch.tensor([1e-3,1,10,1,1,1,100.])+1e5
    for size in (1, 3, 499, 500):
        m,c = mean_cov(f.split(size))
        assert torch.allclose(m, f.double().mean(0), rtol=1e-12) and torch.allclose(c, f.double().T.cov(), rtol=1e-8, atol=1e-12)

def brute(f, ref, k):
    d = np.linalg.norm(ref[:,None]-ref[None], axis=-1); radius = np.sort(d, 1)[:,k]
    return np.linalg.norm(f[:,None]-ref[None], axis=-1)<=radius

def test_shares_against_their_definitions():
    f, r = rand(60, 3), rand(70, 3, seed=1)*1.2
    p,rec = precision_recall(f, r); d,c = density_coverage(f, r)
    f,r = f.double().numpy(), r.double().numpy()
    assert p==pytest.approx(brute(f, r, 3).any(1).mean()) and rec==pytest.approx(brute(r, f, 3).any(1).mean())
    inside = brute(f, r, 5)
    assert d==pytest.approx(inside.sum()/(5*60)) and c==pytest.approx(inside.any(0).mean())

def test_dropped_modes_cost_recall_alone_and_noise_precision_alone():
    def modes(n, which, seed):
        c = torch.eye(8)[torch.randint(which, (n,), generator=torch.Generator().manual_seed(seed))]*20
        return c+rand(n, 8, seed=seed)*torch.tensor([1.,1,1,1,0,0,0,0])
    real, same, half = modes(600, 4, 0), modes(600, 4, 1), modes(600, 2, 2)
    noisy = same.clone(); noisy[:300,4:] += 8*rand(300, 4, seed=3)
    (p0,r0), (p1,r1), (p2,r2) = (precision_recall(f, real) for f in (same, half, noisy))
    assert p0>.9 and r0>.9
    assert p1>p0-.05 and .4<r1<.6
    assert .45<p2<.6 and r2>r0-.05

# ---- features

def test_pictures_are_made_one_batch_at_a_time():
    alive, most = [], 0
    def batches():
        nonlocal most
        for i in range(12):
            x = rand(16, 3, 32, 32, seed=i).clamp(-1,1)
            alive.append(weakref.ref(x))
            most = max(most, sum(o() is not None for o in alive))
            yield None, lambda x=x: x
            del x
    rows,stats = _measure(batches(), [on_pictures()], n_pictures=40)
    assert rows[0].shape==(192,8) and stats['latents'] is None and most<=3
    alive.clear(); most = 0
    assert torch.allclose(features(on_pictures(), (f() for _,f in batches())), rows[0]) and most<=3

def test_timm_features_from_a_file(tmp_path):
    import timm
    from safetensors.torch import save_file
    torch.manual_seed(3); net = timm.create_model('test_resnet', pretrained=False).eval()
    save_file({k: v.contiguous() for k,v in net.state_dict().items()}, tmp_path/'w.safetensors')
    x = rand(4, 3, 40, 40).clamp(-1,1)
    ours = features(timm_features('test_resnet', weights=tmp_path/'w.safetensors', size=64), x)
    mean,std = (torch.tensor(net.pretrained_cfg[k]).view(3,1,1) for k in ('mean','std'))
    with torch.no_grad(): theirs = net.forward_head(net.forward_features((F.interpolate(torch.from_numpy(to_uint8(x)).permute(0,3,1,2)/255, (64,64), mode='bilinear', antialias=True)-mean)/std), pre_logits=True)
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert features_id(feature_net(f'timm:test_resnet@{tmp_path/"w.safetensors"}'))[1] != features_id(timm_features('test_resnet', pretrained=False))[1]
    save_file({'a': torch.zeros(1)}, tmp_path/'other.safetensors'); (tmp_path/'junk.safetensors').write_bytes(b'junk')
    with pytest.raises(ValueError, match='does not hold the weights of test_resnet'): timm_features('test_resnet', weights=tmp_path/'other.safetensors')
    with pytest.raises(ValueError, match='safetensors only'): timm_features('test_resnet', weights=tmp_path/'junk.safetensors')
    with pytest.raises(FileNotFoundError, match='no file'): timm_features('test_resnet', weights=tmp_path/'none.safetensors')
    with pytest.raises(ValueError, match='Near are.*test_resnet'): timm_features('test_resnext')

def test_inception_without_weights_or_library(monkeypatch):
    fidelity = pytest.importorskip('torch_fidelity.feature_extractor_inceptionv3')
    def offline(*a, **k): raise OSError('no route to host')
    monkeypatch.setattr(torch.hub, 'load_state_dict_from_url', offline)
    with pytest.raises(FileNotFoundError, match='no route to host.*fetch https.*weights='): inception_features()
    monkeypatch.setitem(sys.modules, 'torch_fidelity', None)
    with pytest.raises(ValueError, match=r'pip install latentfast\[metrics\]'): inception_features()

class Evil:
    def __reduce__(self): return print, ('unpickled!',)

def test_inception_weights_are_not_unpickled(tmp_path, capsys):
    pytest.importorskip('torch_fidelity')
    torch.save(dict(a=Evil()), tmp_path/'w.pth')
    with pytest.raises(FileNotFoundError, match='could not be loaded from'): inception_features(tmp_path/'w.pth')
    assert 'unpickled' not in capsys.readouterr().out

@pytest.mark.slow
def test_inception_is_torch_fidelitys(tmp_path, monkeypatch):
    fidelity = pytest.importorskip('torch_fidelity.feature_extractor_inceptionv3'); cls = fidelity.FeatureExtractorInceptionV3
    with monkeypatch.context() as m:  # random weights
        m.setattr(fidelity, 'load_state_dict_from_url', lambda *a, **k: {}); m.setattr(cls, 'load_state_dict', lambda *a, **k: None)
        net = cls('inception', ['2048'])
    torch.save(net.state_dict(), tmp_path/'w.pth')
    x = rand(2, 3, 32, 32).clamp(-1,1)
    with torch.no_grad(): theirs = net(torch.from_numpy(to_uint8(x)).permute(0,3,1,2))[0]
    ours = inception_features(tmp_path/'w.pth')
    assert torch.allclose(features(ours, x), theirs) and theirs.shape==(2,2048) and 'Inception' in features_id(ours)[0]

# ---- evaluate

@pytest.fixture(scope='module')
def store(tmp_path_factory, codec_folder):
    tmp = tmp_path_factory.mktemp('evaluation')
    return encode(make_pictures(tmp/'pictures', 160), tmp/'store', codec=str(codec_folder), size=32, valid_pct=.4, progress=False)

def learner(store, seed=0, epochs=1, cbs=None, path=None):
    learn = diffusion_learner(latent_dls(store, bs=16, seed=seed), size='tiny', seed=seed, cbs=cbs)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, 1e-3)
    return learn

FAST = dict(n=40, n_pictures=8)

def test_a_learner_its_pipeline_its_folder_and_its_samples_score_the_same(store, tmp_path):
    learn = learner(store); learn.export_pipeline(tmp_path/'model')
    nets = [conv(), on_pictures()]
    kw = dict(features=nets, steps=3, seed=5, progress=False, **FAST)
    z = learn.sample_latents(40, steps=3, seed=5, progress=False)
    a,b,c,d = (evaluate(m, store, **kw) for m in (learn, learn.to_pipeline(), tmp_path/'model', z))
    for s in (b,c,d):
        for i in (0,1): assert s[i]['fid']==pytest.approx(a[i]['fid'], rel=1e-4) and s[i]['recall']==a[i]['recall'] and s[i]['features_hash']==a[i]['features_hash']
    assert [s['against'] for s in a]==['valid','reconstructions'] and json.loads(json.dumps(a))==a
    for i,p in enumerate(to_uint8(learn.decode(z))): (tmp_path/'png').mkdir(exist_ok=True); Image.fromarray(p).save(tmp_path/'png'/f'{i:03}.png')
    s = evaluate(tmp_path/'png', store, **{**kw, 'features':nets[1]})
    assert s['fid']==pytest.approx(a[1]['fid'], rel=1e-4) and s['latents'] is None

def test_a_model_with_conditions_is_asked_for_what_the_real_ones_show(tmp_path, codec_folder, monkeypatch):
    "Whether learner or pipeline, each class as often as it is in the split; a store of other classes can't say"
    for i,name in enumerate(('cat','dog','fox')): make_pictures(tmp_path/'pictures'/name, 20*(i+1))
    how = dict(codec=str(codec_folder), size=32, valid_pct=.4, progress=False)
    store = encode(tmp_path/'pictures', tmp_path/'store', **how)
    learn = diffusion_learner(latent_dls(store, bs=16, seed=0, cond='class'), size='tiny', seed=0)
    n, seen = len(store.valid), []
    for kind in (type(learn), LatentDiffusionPipeline):
        old = kind.sample_latents
        def spy(self, n, old=old, **kw): seen.append(kw['cond']['label'] if kw.get('cond') else None); return old(self, n, **kw)
        monkeypatch.setattr(kind, 'sample_latents', spy)
    kw = dict(n=n, n_pictures=0, features=conv(), steps=2, progress=False, guidance_scale=2.)
    scores = [evaluate(m, store, **kw) for m in (learn, learn.to_pipeline())]
    assert seen[0].tolist()==seen[1].tolist()!=sorted(seen[0].tolist()) and sorted(seen[0].tolist())==sorted(store.valid.labels)
    assert scores[0]['fid']==pytest.approx(scores[1]['fid'], rel=1e-4)
    (tmp_path/'pictures'/'cat').rename(tmp_path/'pictures'/'elk')
    other = encode(tmp_path/'pictures', tmp_path/'other', **how)
    with pytest.warns(UserWarning, match='told a label'): evaluate(learn.to_pipeline(), other, **{**kw, 'guidance_scale':1.})
    assert seen[2] is None

def test_a_model_of_another_normaliser_is_brought_to_the_stores(store):
    pipe = learner(store).to_pipeline()
    pipe.register_to_config(latents_mean=[.5]*4, latents_std=[2.]*4)
    z = store.normalizer.normalize(pipe.normalizer.denormalize(pipe.sample_latents(40, steps=3, seed=0, progress=False)))
    s = evaluate(pipe, store, features=conv(), steps=3, progress=False, **FAST)
    assert s['fid']==pytest.approx(evaluate(z, store, features=conv(), **FAST)['fid'], rel=1e-5)

def test_a_model_of_another_autoencoder_needs_the_original_pictures(store, tmp_path):
    pictures = store.path.parent/'pictures'
    other = encode(pictures, tmp_path/'other', codec=str(make_codec(tmp_path/'codec', seed=1)), size=32, valid_pct=.4, progress=False)
    learn = learner(other)
    for net in (conv(), on_pictures()):
        with pytest.raises(ValueError, match='AutoencoderKL-.*AutoencoderKL-'): evaluate(learn, store, features=net, steps=2, progress=False, **FAST)
    s = evaluate(learn, store, features=on_pictures(), pictures=pictures, steps=2, progress=False, **FAST)
    assert s['against']=='valid' and s['latents'] is None and s['fid']>0

def test_more_than_a_chunk_is_sampled_from_fresh_seeds(store):
    from latentfast.evaluation import _sampled
    class Model:
        def sample_latents(self, n, seed): return torch.full((n,1,1,1), float(seed))
    parts = list(_sampled(Model(), 2500, 7))
    class Conditional:
        def sample_latents(self, n, seed, cond, steps): assert len(cond['y'])==n and cond['w'].ndim==0 and steps==3; return cond['y']
    y = torch.arange(3000)
    assert torch.equal(torch.cat(list(_sampled(Conditional(), 2500, 7, 3000, cond=dict(y=y, w=torch.tensor(1.)), steps=3))), y[:2500])
    assert [len(p) for p in parts]==[1024,1024,452] and len({p[0].item() for p in parts})==3 and parts[0][0]==7

def test_the_cache(tmp_path, store, monkeypatch):
    shutil.copytree(store.path, tmp_path/'store'); copy = LatentStore(tmp_path/'store')
    z, net, seen = rand(40, *store.latent_shape), conv(), []
    monkeypatch.setattr(net, 'forward', lambda x, f=net.forward: (seen.append(len(x)), f(x))[1])
    run = lambda **kw: (seen.clear(), evaluate(z, copy, features=net, **{**FAST, **kw}), sum(seen))[1:]
    first,n = run(); assert n==120
    again,n = run(); assert again==first and n==40                       # the samples alone
    folder = _cache_folder(copy); files = sorted(folder.iterdir()); assert folder==tmp_path/'.store.cache' and len(files)==2 and copy.problems()==[]
    for damage in (lambda b: b[:len(b)//2], lambda b: b'', lambda b: b[:-5]+b'\0\0\0\0\0', lambda b: b'\xff'*64+b[64:], lambda b: b'junk'):
        for f in files: f.write_bytes(damage(f.read_bytes()))
        s,n = run(); assert s==first and n>40
        assert run()[1]==40
    assert run(seed=1)[1]>40 and run(n=30)[1]>30 and run(against='train')[1]>40 and run(n_pictures=9)[1]>40
    with torch.no_grad(): net[0].bias += 1
    assert run()[1]>40                                                  # other weights
    index = json.loads((copy.path/'index.json').read_text()); copy.index['checksum'] = '0'*64
    assert index['checksum']!='0'*64 and run()[1]>40                     # another store
    shutil.rmtree(folder); folder.write_text('in the way')
    assert run()[0]['fid']>0 and folder.read_text()=='in the way'

def test_a_store_elsewhere_opens_again_after_an_evaluation(store, tmp_path, monkeypatch):
    monkeypatch.setenv('LATENTFAST_CACHE', str(tmp_path/'here'))
    z, net = rand(40, *store.latent_shape), conv()
    first = evaluate(z, LatentStore(store.path.as_uri()), features=net, n=40, n_pictures=0)
    again = LatentStore(store.path.as_uri())
    assert len(list(_cache_folder(again).iterdir()))==2 and evaluate(z, again, features=net, n=40, n_pictures=0)==first and again.problems()==[]

def test_original_pictures_are_looked_at_again_when_they_change(store, tmp_path):
    shutil.copytree(store.path.parent/'pictures', tmp_path/'pictures')
    z, net = rand(40, *store.latent_shape), on_pictures()
    before = evaluate(z, store, features=net, pictures=tmp_path/'pictures', **FAST)
    assert before==evaluate(z, store, features=net, pictures=tmp_path/'pictures', **FAST)
    for p in (tmp_path/'pictures').rglob('*.png'): Image.new('RGB', (40,36), 'red').save(p)
    after = evaluate(z, store, features=net, pictures=tmp_path/'pictures', **FAST)
    assert after['fid']!=before['fid'] and after['real_pictures']['saturation']>.99
    next((tmp_path/'pictures').rglob('*.png')).unlink(); shutil.rmtree(tmp_path/'pictures'/'dog')
    with pytest.raises(FileNotFoundError, match='lacks .* such as dog'): evaluate(z, store, features=net, pictures=tmp_path/'pictures', **FAST)

def test_the_real_pictures_that_are_looked_at_are_of_all_classes(codec, tmp_path):
    for name,grey in (('a',0), ('b',255)):
        for i in range(40): (tmp_path/'src'/name).mkdir(parents=True, exist_ok=True); Image.new('L', (32,32), grey).save(tmp_path/'src'/name/f'{i}.png')
    store = encode(tmp_path/'src', tmp_path/'store', codec=codec, size=32, progress=False)
    score = evaluate(rand(40, *store.latent_shape), store, n=40, n_pictures=20, features=on_pictures(), against='train', pictures=tmp_path/'src')
    assert .2 < score['real_pictures']['brightness'] < .8

def test_a_learner_that_was_loaded_has_no_curves(store, tmp_path):
    learn = diffusion_learner(latent_dls(store, bs=16, seed=0), size='tiny', seed=0)
    assert len(compare([learn], store, tmp_path/'report.html', features=conv(), steps=2, progress=False, **FAST))==1 and (tmp_path/'report.html').exists()

def test_a_name_that_is_no_folder_is_asked_of_the_hub(store, monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    with pytest.raises(FileNotFoundError, match='user/model: it is neither a folder here, nor could it be downloaded from the hub'):
        evaluate('user/model', store, features=conv(), **FAST)

def test_what_cannot_be_evaluated(store, tmp_path):
    z = rand(8, *store.latent_shape)
    for says,args,kw in (('this is a int', (3, store), {}), ('no folder', (tmp_path/'nowhere', store), dict(features=on_pictures())), ('at least 4', (z, store), dict(n=3)),
                         ('gives no features', (z, store), dict(features=7)), ('must match', (rand(8,4,2,2), store), {}), ('no latent store|no folder', (z, tmp_path/'s'), {})):
        with pytest.raises((ValueError, FileNotFoundError), match=says): evaluate(*args, **kw)
    with pytest.raises(ValueError, match='pipeline, a learner or a tensor'):
        (tmp_path/'p').mkdir(); Image.new('RGB', (32,32)).save(tmp_path/'p'/'a.png'); show_nearest(tmp_path/'p', store)

def test_a_pixel_classifier_learns(store, tmp_path):
    learn = pixel_learner(store, size=16, n=64, nfs=(8,16))
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, 3e-3); learn.lr_find(num_it=2, show_plot=False, suggest_funcs=None)
    learn.model.save_pretrained(tmp_path/'judge'); net = feature_net(tmp_path/'judge')
    assert isinstance(net, PictureFeatures) and net.size==16 and features(net, rand(3,3,32,32)).shape==(3,16)
    assert isinstance(LatentClassifier.from_pretrained(tmp_path/'judge'), LatentClassifier)

@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    from latentfast.scenes import make_scenes
    tmp = tmp_path_factory.mktemp('scenes')
    return encode(make_scenes(tmp/'scenes', 400, size=64, valid_pct=.4, workers=1, progress=False), tmp/'store', codec='tiny', size=64, progress=False)

@pytest.mark.parametrize('score', ['fid','kid'])
def test_the_score_orders_levels_of_damage(scenes, score):
    "On a latent classifier with random weights, which nothing can have been fitted to"
    get = lambda ds: (lambda z,y: (scenes.normalizer.normalize(z), y))(*ds.__getitems__(range(len(ds))))
    (z,y), (zv,_) = get(scenes.train), get(scenes.valid)
    with torch.random.fork_rng(): torch.manual_seed(0); net = LatentClassifier.from_size('tiny', n_classes=24, latent_size=8)
    real = features(net, zv); of = lambda z: (lambda f: fid(f, real) if score=='fid' else _mmd(f.double(), real.double()))(features(net, z))
    rises = lambda levels: all(a<b for a,b in zip(levels, levels[1:]))
    blurred, one = F.avg_pool2d(z, 3, 1, 1, count_include_pad=False), (y==y.mode().values).nonzero().flatten()
    noise, order = rand(*z.shape), torch.randperm(len(z), generator=torch.Generator().manual_seed(0))
    def share(a): i = torch.arange(len(z)); m = order[:round(a*len(z))]; i[m] = one[m%len(one)]; return z[i]
    levels = (0, .2, .4, .6, .8, 1.)
    assert rises([of(z.lerp(blurred, a)) for a in levels])
    assert rises([of(z+2*a*noise) for a in levels])
    assert rises([of(share(a)) for a in levels])
    def left(k, seed):  # only k classes, whichever
        keep = y.unique()[torch.randperm(len(y.unique()), generator=torch.Generator().manual_seed(seed))[:k]]
        at = torch.isin(y, keep).nonzero().flatten(); return z[at[torch.arange(len(z))%len(at)]]
    assert rises([np.mean([of(left(k, s)) for s in range(8)]) for k in (24,16,8,4,2,1)])

# ---- fastai's own interpretation

def test_what_plain_interpretation_can_do_and_what_not(store):
    learn = classifier_learner(store, arch='tiny', bs=16, seed=0)
    with learn.no_bar():
        plain, classes = Interpretation.from_learner(learn), ClassificationInterpretation.from_learner(learn)
        losses, rows = plain.top_losses(5)
        z,y = store.valid.__getitems__(rows.tolist())
        with torch.no_grad(): again = F.cross_entropy(learn.model.float().cpu().eval()(store.normalizer.normalize(z)), y, reduction='none')
        assert torch.allclose(torch.as_tensor(losses).float(), again, atol=.05) and torch.equal(plain.losses, classes.losses)
        assert classes.confusion_matrix().sum(1).tolist()==np.bincount(store.valid.labels).tolist()
        for interp in plain, classes:  # pictures are LatentInterpretation's
            with pytest.raises(AttributeError, match='items'): interp.plot_top_losses(2)

# ---- in training

def test_fid_metric_changes_nothing_and_survives_an_interruption(store, tmp_path):
    from fastai.callback.core import Callback, CancelFitException
    class Stop(Callback):
        order = 60
        def after_epoch(self):
            if self.epoch==1: raise CancelFitException()
    metric = lambda: FIDMetric(every=3, n=16, features=conv(), steps=2)
    plain, whole = learner(store, epochs=4), learner(store, epochs=4, cbs=metric())
    learner(store, epochs=4, cbs=[metric(), Checkpoint(tmp_path/'c.pt'), Stop()])
    resumed = learner(store, epochs=4, cbs=[metric(), Checkpoint(tmp_path/'c.pt')])
    for l in (whole, resumed):
        for a,b in zip(plain.model.parameters(), l.model.parameters()): assert torch.equal(a, b)
        assert [e for e,_ in l.fid_metric.history]==[1,3,4] and l.metrics==[]
        fids = [s['fid'] for _,s in l.fid_metric.history]
        assert [r[2] for r in l.recorder.values]==pytest.approx([fids[0], *fids]) and l.recorder.metric_names[3:5]==['fid','kid']
    for a,b in zip(whole.fid_metric.history, resumed.fid_metric.history): assert a[1]['fid']==pytest.approx(b[1]['fid'], rel=1e-5)

def test_fid_metric_minds_its_own_business(store):
    from fastai.callback.tracker import SaveModelCallback
    learn = learner(store, epochs=2, cbs=FIDMetric(every=9, n=16, features=conv(), steps=2))
    n = len(learn.fid_metric.history)
    with learn.no_bar(), learn.no_logging():
        learn.validate(); learn.lr_find(num_it=2, show_plot=False, suggest_funcs=None)
        assert len(learn.fid_metric.history)==n==2
        learn.add_cb(SaveModelCallback(monitor='fid', comp=np.less)); learn.path = store.path.parent; learn.fit_one_cycle(3, 1e-4)
        assert learn.save_model.best==min(r[2] for r in learn.recorder.values)
    assert len(learn.fid_metric.history)==n+2

# ---- the report

def test_names_cannot_break_the_page():
    page = report_html('<script>', '"', [('<b>', '&', [table_html(['<i>'], [['</table><script>alert(1)</script>']])])])
    assert '<script' not in page and '&lt;/table&gt;' in page and '<i>' not in page

@pytest.fixture(scope='module', params=['compare', pytest.param('demo', marks=pytest.mark.slow)])
def report(request, store, tmp_path_factory):
    "A page that `compare` wrote, with a name too long for a phone; and the demo's"
    tmp = tmp_path_factory.mktemp('report')
    if request.param=='demo':
        from latentfast.demo import demo
        return demo(tmp/'demo', minutes=.2, unet='tiny', progress=False)
    z = rand(40, *store.latent_shape)
    compare([z, z*1.5, z*2], store, tmp/'report.html', names=['a'*60, 'b', 'b'], features=[conv(), on_pictures()], **FAST)
    return tmp/'report.html'

def test_the_page_stands_alone(report):
    page = report.read_text()
    assert not re.search(r'<script|<link|@import|url\(|(?:src|href)="(?!data:)', page) and 'prefers-color-scheme: dark' in page and 'width=device-width' in page

@pytest.fixture(scope='module')
def chromium():
    found = next(filter(None, map(shutil.which, ('chromium','chromium-browser','google-chrome'))), None)
    if not found: pytest.skip('there is no Chromium on this machine')
    with pytest.importorskip('playwright.sync_api').sync_playwright() as p:
        browser = p.chromium.launch(executable_path=found, args=['--no-sandbox'])
        yield browser
        browser.close()

@pytest.mark.parametrize('scheme', ['light','dark'])
@pytest.mark.parametrize('size', [(390,844),(1440,900)], ids=['phone','desk'])
def test_the_page_in_a_browser(report, chromium, size, scheme):
    at = chromium.new_page(viewport=dict(width=size[0], height=size[1]), color_scheme=scheme)
    wrong, asked = [], []
    at.on('console', lambda m: wrong.append(m.text)); at.on('pageerror', lambda e: wrong.append(str(e)))
    at.on('request', lambda r: asked.append(r.url))
    at.goto(report.as_uri())
    assert not wrong and [u for u in asked if not u.startswith('data:')]==[report.as_uri()]
    assert at.evaluate('document.documentElement.scrollWidth <= innerWidth')
    assert not at.evaluate('''() => [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') &&
        (e.getBoundingClientRect().right > innerWidth+1 || e.getBoundingClientRect().left < -1)).map(e => e.outerHTML.slice(0, 120))''')
    pictures = at.locator('img').all()
    for p in pictures:
        p.scroll_into_view_if_needed()
        assert p.is_visible() and p.get_attribute('alt') and p.evaluate('e => e.complete && e.naturalWidth > 50 && e.getBoundingClientRect().width > 50')
    ground, ink = (at.evaluate(f'getComputedStyle(document.body).{k}.match(/[0-9]+/g).slice(0,3).map(Number).reduce((a,b) => a+b)/765') for k in ('backgroundColor','color'))
    assert len(pictures)>=4 and (ground>.9 and ink<.2 if scheme=='light' else ground<.2 and ink>.8)
    at.close()

# ---- at size

@pytest.mark.slow
def test_fid_of_50000_rows_of_1024_in_30_seconds_and_2_gigabytes():
    code = '''if 1:
        import resource, time, torch
        torch.set_num_threads(2)
        from latentfast.evaluation import fid
        g = torch.Generator().manual_seed(0)
        a, b = torch.randn(50_000, 1024, generator=g), torch.randn(50_000, 1024, generator=g).mul_(1.1).add_(.05)
        t = time.perf_counter(); f = fid(a, b); t = time.perf_counter()-t
        print(f, t, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20)'''
    import os
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, env={k:v for k,v in os.environ.items() if k!='OMP_NUM_THREADS'}).stdout
    f, seconds, gigabytes = map(float, out.split())
    print(f'FID {f:.2f} in {seconds:.1f} s and {gigabytes:.2f} GB')
    assert 1024*(.05**2+.1**2) < f < 1024*(.05**2+.1**2)*1.6+30 and seconds<30 and gigabytes<2

def test_a_folder_is_scored_by_a_fair_choice(store, tmp_path):
    "Not by its first pictures, which may all be of one class"
    src = make_pictures(tmp_path/'sampled', 60)
    from latentfast.evaluation import _look, _samples
    from latentfast.sources import find_pictures
    have, batches = _samples(src, store, 0, 8, None, None, 'valid')
    seen = [x for _,pictures in batches(16) for x in pictures()]
    first = _look(find_pictures(src, valid_pct=0), range(16), store)
    assert have==60 and len(seen)==16 and not all(torch.equal(a, b) for a,b in zip(seen, first))
