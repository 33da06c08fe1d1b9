"What a notebook can't hold of training an autoencoder: kills, worker processes, and a missing extra."
import os, signal, subprocess, sys, time
import pytest, torch
from conftest import make_pictures

ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'FASTPROGRESS_DISABLE': '1'}
TRAIN = '''
import sys, torch
from pathlib import Path
from latentfast.callbacks import Checkpoint
from latentfast.vae_training import picture_dls, vae_learner
src, out, kind, every, workers = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], float(sys.argv[4]), int(sys.argv[5])
dls = picture_dls(src, size=32, bs=4, per_epoch=32, n_valid=4, memory=0, num_workers=workers, seed=0)
learn = vae_learner(dls, kind=kind, codebook=16 if kind=='vq' else None, restart=5, channels=(8,16), layers=1, attention=False, disc_channels=4, disc_layers=1, disc_start=3, seed=0, path=out)
with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(4, 2e-3, cbs=Checkpoint(out/'checkpoint.pt', every=every))
learn.export_codec(out/'codec')
torch.save(dict(gan=learn.patch_gan.state_dict(), rows=[[float(v) for v in r] for r in learn.recorder.values]), out/'end.pt')
'''

@pytest.mark.parametrize('kind,every,workers', [('vq',0.,1), pytest.param('kl',1e9,0, marks=pytest.mark.slow)])
def test_killed_training_goes_on_to_the_same_codec_and_discriminator(tmp_path, kind, every, workers):
    src = make_pictures(tmp_path/'pictures', 40)
    def start(out): return subprocess.Popen([sys.executable, '-c', TRAIN, *map(str, (src, out, kind, every, workers))], env=ENV, stderr=subprocess.PIPE, text=True)
    (whole := tmp_path/'whole').mkdir(); (out := tmp_path/'broken').mkdir()
    p = start(whole); err = p.communicate()[1]; assert p.returncode==0, err
    p, deadline = start(out), time.time()+120
    while not (out/'checkpoint.pt').exists() and p.poll() is None and time.time()<deadline: time.sleep(.005)
    p.send_signal(signal.SIGKILL); p.communicate()
    assert p.returncode==-9 and not (out/'end.pt').exists()
    p = start(out); err = p.communicate()[1]; assert p.returncode==0, err
    a, b = ((f/'codec'/'diffusion_pytorch_model.safetensors').read_bytes() for f in (whole, out))
    assert a==b
    a, b = (torch.load(f/'end.pt', weights_only=True) for f in (whole, out))
    for k in a['gan']['disc']: assert torch.equal(a['gan']['disc'][k], b['gan']['disc'][k]), k
    for i,s in a['gan']['opt']['state'].items():
        for k,v in s.items(): assert torch.equal(v, b['gan']['opt']['state'][i][k]), (i, k)
    assert torch.allclose(torch.tensor(a['rows']), torch.tensor(b['rows']), rtol=1e-4)

def test_workers_cut_the_same_squares(tmp_path):
    from latentfast.vae_training import picture_dls
    src = make_pictures(tmp_path/'pictures', 40)
    here, there = ([b[0] for b in picture_dls(src, size=16, bs=4, memory=0, num_workers=n, seed=5).train] for n in (0, 2))
    assert len(here)==len(there)>4 and all(torch.equal(a, b) for a,b in zip(here, there))

def test_a_codec_that_began_as_another_names_no_folder_of_this_machine(codec_folder, tmp_path):
    from latentfast.autoencoder import LatentCodec
    from latentfast.vae_training import picture_dls, vae_learner
    model = LatentCodec.from_pretrained(str(codec_folder)).model
    dls = picture_dls(make_pictures(tmp_path/'pictures', 20), size=16, bs=4, per_epoch=4, n_valid=4, num_workers=0, seed=0)
    for given in dict(kind='vq'), dict(factor=16), dict(latent_channels=5), dict(codebook=9):
        with pytest.raises(ValueError, match='{}={} does not go with'.format(*next(iter(given.items())))): vae_learner(dls, model=model, **given)
    learn = vae_learner(dls, model=model, lpips=lambda y, x: (y-x).abs().mean((1,2,3)), disc_weight=0., seed=0)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-6)
    assert not torch.equal(learn.model.net.encoder.conv_in.weight, LatentCodec.from_pretrained(str(codec_folder)).model.encoder.conv_in.weight)
    learn.export_codec(tmp_path/'codec')
    model.encoder.requires_grad_(False)
    assert not vae_learner(dls, model=model, disc_weight=0.).model.net.encoder.conv_in.weight.requires_grad  # as it was given
    assert str(codec_folder) not in (tmp_path/'codec'/'config.json').read_text()

def test_without_torchmetrics_the_extra_is_named(codec, monkeypatch):
    from latentfast.vae_training import evaluate_codec
    monkeypatch.setitem(sys.modules, 'torchmetrics.functional.image', None)
    with pytest.raises(ImportError, match=r'pip install latentfast\[metrics\]'): evaluate_codec(codec, torch.zeros(2,3,32,32))

def test_a_codebook_that_knows_something_is_kept_and_a_late_discriminator_is_said(tmp_path):
    from latentfast.vae_training import make_autoencoder, picture_dls, vae_learner
    torch.manual_seed(0)
    model = make_autoencoder('vq', (8,16), 1, 2, 4, False, 16, 16)
    dls = picture_dls(make_pictures(tmp_path/'pictures', 20), size=16, bs=4, per_epoch=8, n_valid=4, num_workers=0, seed=0)
    book = lambda l: l.model.net.quantize.embedding.weight.detach().clone()
    for own in True,False:
        learn = vae_learner(dls, 'vq', model=model if own else None, channels=(8,16), layers=1, attention=False, codebook=16, restart=50, disc_layers=1, disc_start=2, seed=0)
        before = book(learn)
        with learn.no_bar(), learn.no_logging(), pytest.warns(UserWarning, match='ends at step 2, and the PatchGAN begins at 2'): learn.fit_one_cycle(1, 1e-6)
        assert ((book(learn)-before).abs().max()<1e-4)==own
        assert {h['mom'] for h in learn.opt.hypers}=={.5}  # fastai's schedules leave LDM's
    with pytest.raises(ValueError, match='no patch in pictures of 16 pixels'): vae_learner(dls, 'vq', channels=(8,16), layers=1, attention=False, codebook=16)

def test_lpips_takes_any_size():
    from latentfast.lpips import LPIPS
    net, x = LPIPS.from_pretrained('tiny'), torch.rand(2,3,40,24)*2-1
    d = net(x, -x)
    assert d.shape==(2,) and (d>0).all() and torch.allclose(net(x, x), torch.zeros(2))
    wide = torch.nn.functional.pad(x, (0,8,0,8), mode='replicate')
    assert torch.allclose(net(wide, -wide), d)

def test_a_training_goes_on_with_another_rate_but_not_with_another_network(tmp_path):
    from latentfast.cli import _claim, _finish
    out, settings = tmp_path/'out', dict(lr=1e-3, factor=8)
    claim = lambda **kw: _claim(out, 'train-vae', {**settings, **kw}, ('lr',))
    assert not claim() and not claim(lr=1e-4)
    with pytest.raises(ValueError, match='factor: 8 before, 4 now'): claim(factor=4)
    _finish(out)
    assert claim(lr=1e-4)
    with pytest.raises(ValueError, match='lr: 0.0001 before, 0.001 now'): claim()
