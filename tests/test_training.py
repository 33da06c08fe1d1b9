"Training in several processes: two with half the batch each are one with all of it. Killed runs."
import importlib.util, json, os, random, signal, socket, subprocess, sys, time
from pathlib import Path
import pytest, torch
from conftest import make_pictures
from test_classifier import make_store

SCRIPT = '''
import json, sys, warnings, zlib
from pathlib import Path
import torch
from fastai.callback.core import Callback
from fastai.torch_core import num_distrib, rank_distrib, set_seed
from latentfast.callbacks import Checkpoint
from latentfast.classifier import LatentClassifier, classifier_learner
from latentfast.data import latent_dls
from latentfast.feature_nets import Alignment
from latentfast.perceptual import PerceptualLoss, latent_ensemble
from latentfast.training import SampleProgress, diffusion_learner
from latentfast.unet import LatentUNet

class Losses(Callback):
    order, run_valid = 49, False
    def before_fit(self): self.all, self.random = [], []
    def after_batch(self):
        self.all.append(float(self.learn.to_detach(self.learn.loss)))
        self.random.append(zlib.crc32(torch.get_rng_state().numpy()))

class StopAt(Callback):
    order, run_valid = 70, False
    def after_batch(self):
        if (self.epoch, self.iter)==(1,1): raise KeyboardInterrupt

warnings.filterwarnings('ignore')
torch.set_num_threads(1)
store, out, stop, kind, seed = sys.argv[1], Path(sys.argv[2]), sys.argv[3]=='stop', sys.argv[4], int(sys.argv[5])
world = max(1, num_distrib()); set_seed(seed+100*rank_distrib()*(kind!='unet'))
dls = latent_dls(store, bs=64//world, valid_bs=32//world, device='cpu')
progress, losses = SampleProgress(every_steps=3, n=2, steps=2), Losses()
cbs = [losses, Checkpoint(out/'checkpoint.pt', every=0), *([StopAt()] if stop else [])]
if kind=='unet':
    clf = LatentClassifier(nfs=(8,16,32), n_blocks=(1,1), n_classes=2, latent_size=4)
    drawn = PerceptualLoss(clf, layers=[0], augment=latent_ensemble, weight=1e-9, min_snr=3.)  # draws more where more samples pass, and hardly counts
    learn = diffusion_learner(dls, LatentUNet(nfs=(8,16), num_layers=1), perceptual=[PerceptualLoss(clf), Alignment(clf, weight=.2, hidden=16), drawn], seed=1, precision=None, cbs=[progress, *cbs])
else: learn = classifier_learner(dls, arch='tiny', precision=None, cbs=cbs)
with learn.no_bar(), learn.no_logging(), learn.distrib_ctx():
    try: learn.fit_one_cycle(2, 4e-3)
    except KeyboardInterrupt: sys.exit(0)
numbers = dict(losses=losses.all, random=losses.random, valid=[list(v)[1:4] for v in learn.recorder.values], sampled=[i for i,_ in progress.history],
               files=sorted(f.name for f in Path(store, '.cache').glob('*')), weights=[p.double().sum().item() for p in learn.model.parameters()])
(out/f'rank{rank_distrib()}.json').write_text(json.dumps(numbers))
if not rank_distrib():
    torch.save(learn.model.state_dict() if kind!='unet' else dict(model=learn.model.state_dict(), ema=learn.ema_model.state_dict(), proj=learn.perceptual.losses[1].proj.state_dict(),
               sample=learn.sample_latents(2, steps=2, progress=False)), out/'weights.pt')
'''

def train(store, out, processes, stop=False, kind='unet', seed=7):
    "Run the script in so many processes; what each says, and the weights"
    out.mkdir(exist_ok=True); (out/'train.py').write_text(SCRIPT)
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    launch = [] if processes==1 else ['-m', 'torch.distributed.run', f'--nproc_per_node={processes}', f'--master_port={port}']
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'ACCELERATE_USE_CPU': 'true'}
    r = subprocess.run([sys.executable, *launch, str(out/'train.py'), str(store), str(out), 'stop' if stop else 'go', kind, str(seed)], env=env, capture_output=True, text=True)
    assert r.returncode==0, r.stderr[-3000:]
    if stop: return
    return [json.loads((out/f'rank{i}.json').read_text()) for i in range(processes)], torch.load(out/'weights.pt', weights_only=True)

@pytest.fixture(scope='module')
def store(codec_folder, tmp_path_factory):
    from latentfast.encode import encode
    tmp = tmp_path_factory.mktemp('train')
    for split,n in (('train',256), ('valid',32)): make_pictures(tmp/'pictures'/split, n, size=(32,32), seed=n)
    encode(tmp/'pictures', tmp/'store', codec=str(codec_folder), size=32, progress=False)
    return tmp/'store'

def close(a, b, eps):
    return all(torch.allclose(a[k], b[k], atol=eps) for k in a)

@pytest.mark.slow
def test_two_processes_are_one(store, tmp_path):
    pytest.importorskip('accelerate')
    (one,), w1 = train(store, tmp_path/'one', 1)
    (first, second), w2 = train(store, tmp_path/'two', 2)
    assert len(one['losses'])==8 and one['losses'][0]!=one['losses'][-1]
    for n in (first, second):
        assert torch.allclose(torch.tensor(n['losses']), torch.tensor(one['losses']), atol=1e-4)
        assert torch.allclose(torch.tensor(n['valid']), torch.tensor(one['valid']), atol=1e-4)
    assert close(w1['ema'], w2['ema'], 1e-3) and close(w1['proj'], w2['proj'], 1e-3) and torch.allclose(w1['sample'], w2['sample'], atol=1e-2)
    assert first['sampled']==one['sampled']==[3,6,8] and second['sampled']==[]  # the first process samples
    assert first['files']==one['files'] and len(one['files'])==4                # one cache for all
    assert first['random']==second['random']==one['random']                     # nobody's random numbers have run ahead

    train(store, tmp_path/'cut', 2, stop=True)
    assert torch.load(tmp_path/'cut'/'checkpoint.pt', weights_only=True)['epoch']==1
    (again, _), w3 = train(store, tmp_path/'cut', 2)
    assert len(again['losses']) < 8 and torch.allclose(torch.tensor(again['losses']), torch.tensor(first['losses'][-len(again['losses']):]), atol=1e-6)
    assert all(close(w2[k], w3[k], 1e-6) for k in ('model','ema','proj'))

@pytest.mark.slow
def test_a_classifier_in_two_processes_goes_on_without_a_seed(tmp_path):
    pytest.importorskip('accelerate')
    store = make_store(tmp_path/'store', [0,1,2]*80, [0,1,2]*10).path
    train(store, tmp_path/'cut', 2, stop=True, kind='classifier')
    (first, second), _ = train(store, tmp_path/'cut', 2, kind='classifier', seed=8)
    assert 0<len(first['losses'])<6 and first['losses']==second['losses'] and first['weights']==second['weights']
    assert first['random']==second['random']  # they began with different ones, and the seed that was drawn is one for both
    losses = torch.load(tmp_path/'cut'/'checkpoint.pt', weights_only=True)['losses']
    assert len(losses)==6 and losses[-1]<losses[0]

# ---- wrong numbers, few pictures

def test_what_draws_its_squares_trains_in_one_process(tmp_path):
    from latentfast.callbacks import LatentDistributedDL
    from latentfast.vae_training import picture_dls
    dl = LatentDistributedDL(picture_dls(make_pictures(tmp_path/'pictures', 40), 16, bs=4, num_workers=0).train, rank=0, world_size=2, device='cpu')
    with pytest.raises(ValueError, match='PictureDL cannot be shared out'): dl.get_idxs()

def test_few_pictures_and_zeros(tmp_path):
    from latentfast.data import latent_dls
    from latentfast.training import SampleProgress, diffusion_learner
    from latentfast.unet import LatentUNet
    store = make_store(tmp_path/'store', [0,1]*2, [0,1])
    with pytest.raises(ValueError, match='bs=0'): latent_dls(store, bs=0)
    for kw in dict(every=0), dict(every_steps=-1), dict(n=0):
        with pytest.raises(ValueError, match='1 or more'): SampleProgress(**kw)
    learn = diffusion_learner(latent_dls(store, bs=2), LatentUNet(nfs=(8,16), num_layers=1))
    learn.decode = learn.dls.train.pictures = learn.dls.valid.pictures = lambda *z: torch.zeros(4, 3, 8, 8)  # the autoencoder isn't what this is about
    learn.show_results(steps=1); learn.show_results(0, max_n=3, steps=1)

def test_slow_saves_do_not_eat_short_epochs(tmp_path):
    "A save that took long is followed by epochs without one; the last epoch is kept, and going on makes the same weights"
    from fastai.callback.core import Callback, CancelFitException
    from latentfast.callbacks import Checkpoint
    from latentfast.data import latent_dls
    from latentfast.training import diffusion_learner
    from latentfast.unet import LatentUNet
    store = make_store(tmp_path/'store', [0,1]*64, [0,1])
    def fit(path, stop=None, cost=0.):
        class Slow(Callback):
            order = Checkpoint.order-1
            def after_epoch(self):
                if self.epoch>=1: self.learn.checkpoint.cost = cost
        class Stop(Callback):
            order = Checkpoint.order+1
            def after_epoch(self):
                dates.append(path.stat().st_mtime_ns)
                if self.epoch==stop: raise CancelFitException
        dates = []; torch.manual_seed(0)
        learn = diffusion_learner(latent_dls(store, bs=64), LatentUNet(nfs=(8,16), num_layers=1), precision=None, seed=0, cbs=[Checkpoint(path), Slow(), Stop()])
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(5, 4e-3)
        return learn, len({*dates})
    (whole, saves), (_, some), (cut, one) = fit(tmp_path/'a.pt'), fit(tmp_path/'b.pt', cost=1e3), fit(tmp_path/'c.pt', 2, 1e3)
    assert (saves, some, one)==(5, 2, 1) and torch.load(tmp_path/'b.pt', weights_only=True)['epoch']==4
    mended, _ = fit(tmp_path/'c.pt')
    assert close(whole.model.state_dict(), mended.model.state_dict(), 0)

@pytest.mark.parametrize('wait', [0., 1.1])
def test_asked_twice_to_stop(interrupts, store, tmp_path, wait):
    "At once the second time, but not where a launcher passes on what this process has had already"
    from fastai.callback.core import Callback
    from latentfast.callbacks import Checkpoint
    from latentfast.data import latent_dls
    from latentfast.training import diffusion_learner
    from latentfast.unet import LatentUNet
    class Asks(Callback):
        def before_step(self): signal.raise_signal(signal.SIGINT); time.sleep(wait); signal.raise_signal(signal.SIGINT)
    before = signal.getsignal(signal.SIGINT)
    learn = diffusion_learner(latent_dls(store, bs=64), LatentUNet(nfs=(8,16), num_layers=1), precision=None, cbs=[Checkpoint(tmp_path/'c.pt'), Asks()])
    with learn.no_bar(), learn.no_logging(), pytest.raises(KeyboardInterrupt): learn.fit_one_cycle(2, 1e-3)
    assert (tmp_path/'c.pt').exists()==(wait<1)
    assert signal.getsignal(signal.SIGINT)==before

def test_a_stop_outlives_another_callbacks(interrupts, store, tmp_path):
    "Asked for in the validation; then early stopping ends the fit before the checkpoint sees the epoch's end"
    from fastai.callback.core import Callback, CancelFitException
    from latentfast.callbacks import Checkpoint
    from latentfast.data import latent_dls
    from latentfast.training import diffusion_learner
    from latentfast.unet import LatentUNet
    class Ends(Callback):
        order = Checkpoint.order-1
        def after_pred(self):
            if not self.training: signal.raise_signal(signal.SIGINT)
        def after_epoch(self): raise CancelFitException
    learn = diffusion_learner(latent_dls(store, bs=64), LatentUNet(nfs=(8,16), num_layers=1), precision=None, cbs=[Checkpoint(tmp_path/'c.pt'), Ends()])
    with learn.no_bar(), learn.no_logging(), pytest.raises(KeyboardInterrupt): learn.fit_one_cycle(2, 1e-3)

def test_a_loaded_average_lies_in_memory_as_the_model(store, tmp_path):
    "As fresh ones do: else the foreach update leaves its fast path on GPUs, where weights are channels-last"
    from latentfast.data import latent_dls
    from latentfast.training import diffusion_learner
    from latentfast.unet import LatentUNet
    def learner():
        learn = diffusion_learner(latent_dls(store, bs=64), LatentUNet(nfs=(8,16), num_layers=1), precision=None, seed=0)
        learn.path = tmp_path
        return learn
    learn = learner()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    learn.save('one'); learn = learner(); learn.load('one'); before = [p.clone() for p in learn.ema_model.parameters()]
    learn.model.to(memory_format=torch.channels_last)  # as `AutoPrecision` does there
    assert any(a.stride()!=b.stride() for a,b in zip(learn.ema_model.parameters(), learn.model.parameters()))
    learn('before_fit')
    for a,b,c in zip(learn.ema_model.parameters(), learn.model.parameters(), before): assert a.stride()==b.stride() and torch.equal(a, c)

# ---- killed

KILLED = '''
import os, signal, sys, torch
from fastai.callback.core import Callback
from latentfast.callbacks import Checkpoint
from latentfast.data import latent_dls
from latentfast.training import diffusion_learner
from latentfast.unet import LatentUNet

class Kill(Callback):
    def __init__(self, step): self.step = step
    def before_step(self):
        if self.train_iter==self.step: os.kill(os.getpid(), signal.SIGKILL)

def fit(store, path, *cbs, seed=0):
    torch.manual_seed(seed)
    learn = diffusion_learner(latent_dls(store, bs=32), LatentUNet(nfs=(8,16), num_layers=1), precision=None, cbs=[Checkpoint(path, every=0), *cbs])
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(3, 4e-3)
    return learn

if __name__=='__main__': fit(sys.argv[1], sys.argv[2], Kill(int(sys.argv[3])))
'''

@pytest.mark.slow
def test_killed_at_any_step_without_a_seed(store, tmp_path):
    (tmp_path/'killed.py').write_text(KILLED)
    spec = importlib.util.spec_from_file_location('killed', tmp_path/'killed.py'); m = importlib.util.module_from_spec(spec); spec.loader.exec_module(m)
    step, env = random.SystemRandom().randrange(1, 24), {**os.environ, 'OMP_NUM_THREADS': str(torch.get_num_threads())}
    r = subprocess.run([sys.executable, str(tmp_path/'killed.py'), str(store), str(tmp_path/'cut.pt'), str(step)], env=env, capture_output=True, text=True)
    assert r.returncode==-9, r.stderr[-3000:]
    whole, mended = m.fit(store, tmp_path/'whole.pt'), m.fit(store, tmp_path/'cut.pt', seed=1)
    for of in (lambda l: l.model.state_dict(), lambda l: l.ema_model.state_dict(), lambda l: {(i,k): v for i,s in l.opt.state_dict()['state'].items() for k,v in s.items()}):
        assert close(of(whole), of(mended), 0), f'killed at step {step}'
