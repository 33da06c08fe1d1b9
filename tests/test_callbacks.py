"Number formats, parts of batches, seeds, and trainings that are interrupted and go on"
import itertools, math, random, signal
import numpy as np, pytest, torch
from fastai.callback.core import Callback
from fastai.callback.schedule import *
from fastai.callback.tracker import SaveModelCallback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner, Metric
from fastcore.foundation import L
from torch import nn
from latentfast.callbacks import AutocastLearner, AutoPrecision, Checkpoint, EpochSeed, LatentDistributedDL, fused_adamw
from latentfast.data import LatentDL

class Numbers:
    "Latents, and of each the mean of its first channel"
    def __init__(self, n=256): self.data = torch.randn(n,4,4,4, generator=torch.Generator().manual_seed(0))
    def __len__(self): return len(self.data)
    def __getitems__(self, i): return self.data[i], self.data[i].mean((2,3))[:,:1]
    def __getitem__(self, i): return self.__getitems__([i])

class Noise(Callback):
    def before_batch(self): self.learn.xb = (self.xb[0]+.1*torch.randn_like(self.xb[0])*random.random(),)

class StopAt(Callback):
    def __init__(self, n): self.n = n
    def after_batch(self):
        if self.training and self.epoch==self.n and self.iter==2: raise KeyboardInterrupt

def toy_model():
    torch.manual_seed(0); random.seed(0)
    return nn.Sequential(nn.Conv2d(4,16,3,padding=1), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16,1))

def toy_learner(cbs=None, cls=AutocastLearner):
    "With fastai's loader, which can't skip batches"
    model = toy_model()
    x = torch.randn(256,4,4,4); x[:,0] += torch.randn(256,1,1)
    ds = list(zip(x, x.mean((2,3))[:,:1]))
    dls = DataLoaders(DataLoader(ds, bs=32, shuffle=True, drop_last=True), DataLoader(ds, bs=64))
    return cls(dls, model, loss_func=nn.MSELoss(), opt_func=fused_adamw, cbs=cbs, train_bn=False)

def latents_learner(cbs=None, cls=AutocastLearner):
    "With our loader, which can"
    dls = DataLoaders(LatentDL(Numbers(), bs=32, shuffle=True), LatentDL(Numbers(), bs=64))
    return cls(dls, toy_model(), loss_func=nn.MSELoss(), opt_func=fused_adamw, cbs=cbs, train_bn=False)

def train(learn, epochs=3, chance=0, **kw):
    "Whatever random numbers there were before"
    torch.manual_seed(chance)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, 1e-2, **kw)
    return learn

def valid_loss(learn): return learn.recorder.values[-1][1]
def read(path): return torch.load(path, weights_only=True)
def seeded(seed): return [] if seed is None else [EpochSeed(seed)]

def same(a, b):
    for p,q in itertools.zip_longest(a.model.parameters(), b.model.parameters()): assert torch.equal(p, q)
    assert a.recorder.losses==b.recorder.losses and a.recorder.values==b.recorder.values and a.recorder.iters==b.recorder.iters

# ---- number formats

def test_number_formats():
    losses = {}
    for dtype in torch.float32, torch.bfloat16, torch.float16:
        learn = train(toy_learner(AutoPrecision(dtype)), 4)
        losses[dtype] = valid_loss(learn)
        assert {p.dtype for p in learn.model.parameters()}=={torch.float32}
        numbers = [v for h in learn.opt.hypers for k,v in h.items() if k!='betas']  # fastai's TensorBoardCallback logs them
        assert numbers and all(isinstance(v, (int,float)) for v in numbers), learn.opt.hypers
    assert losses[torch.float32]<.3
    for dtype in torch.bfloat16, torch.float16: assert losses[dtype]==pytest.approx(losses[torch.float32], abs=.05)

def test_a_scale_that_is_too_large_and_what_is_no_number():
    class Scale(Callback):
        order, run_valid, steps, factor = AutoPrecision.order+1, False, 0, 1.
        def before_fit(self): self.auto_precision.scaler = torch.amp.GradScaler('cpu', init_scale=2.**40)
        def before_batch(self): self.learn.xb = (self.xb[0]*self.factor,)
        def after_step(self): self.steps += 1
    cb = Scale(); learn = train(toy_learner([AutoPrecision(torch.float16), cb]), 8)
    halved = 40-int(np.log2(learn.auto_precision.state_dict()['scale']))
    assert 5<halved<35 and cb.steps==learn.train_iter-halved
    assert valid_loss(learn)==pytest.approx(valid_loss(train(toy_learner(), 4)), abs=.1)
    cb.factor = math.nan
    with pytest.raises(FloatingPointError, match='too large for float16'): train(learn, 8)

def test_autocast_is_left_when_a_batch_is_interrupted():
    class Stop(Callback):
        order = AutoPrecision.order+1
        def after_pred(self):
            on.append(torch.is_autocast_enabled('cpu'))
            raise KeyboardInterrupt
    on = []
    with pytest.raises(KeyboardInterrupt): train(toy_learner([AutoPrecision('bf16'), Stop()]))
    assert on==[True] and not torch.is_autocast_enabled('cpu')

# ---- parts of batches

def dealt(bs, world):
    dl = LatentDL(Numbers(), bs=bs, shuffle=True, drop_last=True); parts = []
    for r in range(world):
        d = LatentDistributedDL(dl, rank=r, world_size=world); d.rng = random.Random(3)
        parts.append([(z, d.rows) for z,_ in d])
        assert len(parts[-1])==len(d)
    return [[torch.cat(o) for o in zip(*batch)] for batch in zip(*parts)]

def test_parts_are_those_of_one_process_batches():
    two, one = dealt(16, 2), dealt(32, 1)
    assert len(two)==len(one)==8
    for a,b in zip(two, one): assert all(torch.equal(p, q) for p,q in zip(a, b))
    assert torch.cat([rows for _,rows in two]).unique().numel()==256
    assert [len(z) for z,_ in dealt(32, 3)]==[96]*2

# ---- interrupted

@pytest.mark.parametrize('seed', [1, None])
def test_interrupted_at_an_epoch(tmp_path, seed):
    "Random numbers before the second call don't matter: the file knows the first one's"
    def fit(name, *cbs, chance=0): return train(toy_learner([Checkpoint(tmp_path/name, settings=dict(lr=1e-2)), *seeded(seed), *cbs]), 4, chance)
    whole = fit('whole.pt')
    with pytest.raises(KeyboardInterrupt): fit('cut.pt', StopAt(2))
    assert read(tmp_path/'cut.pt')['epoch']==1
    mended = fit('cut.pt', chance=99)
    same(whole, mended)
    assert [len(r) for r in mended.recorder.values]==[2]*4
    again = fit('whole.pt', chance=99)  # nothing left to do
    same(whole, again)
    other = fit('other.pt', chance=99)
    assert (whole.recorder.values[0]==other.recorder.values[0])==(seed is not None)

@pytest.mark.parametrize('seed,dtype', [(1,None), (None,None), (1,torch.float16)])
def test_interrupted_within_an_epoch(tmp_path, seed, dtype):
    def fit(name, *cbs, chance=0):
        return train(latents_learner([Noise(), AutoPrecision(dtype), Checkpoint(tmp_path/name, every=0), *seeded(seed), *cbs], Learner), 3, chance)
    whole = fit('whole.pt')
    for at in 0, 1, 2:
        with pytest.raises(KeyboardInterrupt): fit(f'{at}.pt', StopAt(at))
        assert (read(tmp_path/f'{at}.pt')['epoch'], read(tmp_path/f'{at}.pt')['batch'])==(at, 2)  # the interrupted batch itself was not saved yet
        same(whole, fit(f'{at}.pt', chance=99))
        if dtype: assert read(tmp_path/f'{at}.pt')['cbs']['auto_precision']['_growth_tracker']==24  # steps since the scale was changed

# ---- asked to stop

class Asks(Callback):
    "A signal comes in the second epoch, while it is trained or validated"
    def __init__(self, number, training): self.number, self.in_training = number, training
    def after_pred(self):
        if (self.epoch,self.iter,self.training)==(1,3,self.in_training): signal.raise_signal(self.number)

@pytest.mark.parametrize('training,batch', [(True,4), (False,0)])
@pytest.mark.parametrize('number,error', [(signal.SIGINT,KeyboardInterrupt), (signal.SIGTERM,SystemExit)])
def test_a_signal_waits_for_the_batch_or_the_epoch(interrupts, tmp_path, number, error, training, batch):
    def fit(name, *cbs): return train(latents_learner([Noise(), Checkpoint(tmp_path/name), EpochSeed(1), *cbs]))
    whole, before = fit('calm.pt'), signal.getsignal(number)
    with pytest.raises(error) as e: fit('cut.pt', Asks(number, training))
    assert number==signal.SIGINT or e.value.code==128+signal.SIGTERM
    assert signal.getsignal(number)==before
    s = read(tmp_path/'cut.pt'); assert (s['epoch'], s['batch'])==(1, batch)
    same(whole, fit('cut.pt'))

def test_a_plain_learner_is_stopped_at_once(interrupts, tmp_path):
    with pytest.raises(KeyboardInterrupt): train(latents_learner([Checkpoint(tmp_path/'c.pt'), EpochSeed(1), Asks(signal.SIGINT, True)], Learner))
    assert (read(tmp_path/'c.pt')['epoch'], read(tmp_path/'c.pt')['batch'])==(0, 0)

# ---- whose file it is

def test_another_trainings_file_and_a_damaged_one(tmp_path):
    def fit(lr=.01, epochs=2, **kw): return train(toy_learner(Checkpoint(tmp_path/'c.pt', settings=dict(lr=lr), **kw)), epochs)
    fit()
    with pytest.raises(ValueError, match='lr=0.01 before, 0.02 now'): fit(.02)
    with pytest.raises(ValueError, match='n_epoch=2 before, 3 now'): fit(epochs=3)
    fit(.02, may_change=['lr'])
    (tmp_path/'c.pt').write_bytes(b'junk')
    with pytest.raises(ValueError, match='damaged'): fit()

def test_a_checkpoint_that_stays_leaves_other_work_alone(tmp_path):
    path = tmp_path/'stays.pt'
    learn = toy_learner(Checkpoint(path)); learn.path = tmp_path
    with learn.no_logging(), learn.no_bar():
        learn.fit(1, 1e-2)
        saved, row = path.read_bytes(), learn.recorder.values[0]
        assert len(learn.get_preds()[0])==256
        assert list(learn.validate())==pytest.approx(row[1:], abs=1e-5)
        learn.lr_find(num_it=6, show_plot=False)
        fresh, untrained = toy_learner(Checkpoint(path)), toy_learner()
        with fresh.no_logging(), fresh.no_bar(), untrained.no_logging(), untrained.no_bar(): assert fresh.validate()==untrained.validate()
        stop = StopAt(0); learn.add_cb(stop)
        with pytest.raises(KeyboardInterrupt): learn.lr_find(num_it=6, show_plot=False)
        learn.remove_cb(stop)
        assert path.read_bytes()==saved
        path.unlink(); learn.fit(1, 1e-2)  # it takes part again
        assert path.exists()

class Score(Metric):
    "The second epoch is the best"
    def reset(self): pass
    def accumulate(self, learn): self.epoch = learn.epoch
    value, name = property(lambda self: [1.,5.,4.][self.epoch]), 'score'

def test_two_fits_of_one_learner(tmp_path):
    "An interruption in the second goes on in the second; epochs of an earlier run are told once more, and nothing is saved in them"
    class Seen(Callback):
        def before_batch(self):
            if self.training: seen.append(float(self.x.sum()))
    def two_fits(name, *stop):
        learn = toy_learner([Checkpoint(tmp_path/f'{name}.pt'), EpochSeed(1), Seen()]); learn.path, learn.metrics = tmp_path/name, L(Score())
        with learn.no_bar(), learn.no_logging():
            learn.fit(1, 1e-2, cbs=SaveModelCallback(fname='first', at_end=True))
            learn.fit(3, 1e-2, cbs=[SaveModelCallback(monitor='score', fname='best'), *stop])
        return learn
    seen = []; whole = two_fits('whole'); n = len(seen)//4
    assert len(seen)==4*8 and len({*seen[:n]}&{*seen[n:2*n]})<n  # other batches
    for at in 1, 2:
        with pytest.raises(KeyboardInterrupt): two_fits(f'cut{at}', StopAt(at))
        first = tmp_path/f'cut{at}'/'models'/'first.pth'; saved = first.read_bytes()
        seen = []; same(whole, two_fits(f'cut{at}'))
        assert len(seen)==n*(3-at) and first.read_bytes()==saved

def test_only_a_training_counts_for_the_seed(tmp_path):
    learn = toy_learner(EpochSeed(1)); learn.path = tmp_path
    with learn.no_bar(), learn.no_logging():
        with torch.inference_mode(): learn.validate()
        learn.lr_find(num_it=2, show_plot=False)
        assert learn.epoch_seed.fits==-1
        learn.fit(1, 1e-2)
        assert learn.epoch_seed.fits==0
