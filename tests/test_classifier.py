"What the classifier's notebook can't hold: interrupted runs, stores with unfit labels, the bundled weights, and the scripts."
import json, os, subprocess, sys, warnings
from pathlib import Path
from types import SimpleNamespace
import matplotlib, numpy as np, pytest, torch
from fastai.callback.core import Callback
from latentfast import classifier
from latentfast.autoencoder import LatentCodec
from latentfast.callbacks import Checkpoint
from latentfast.classifier import LatentClassifier, LatentInterpretation, classifier_learner
from latentfast.data import latent_dls
from latentfast.store import LatentStore, write_index, write_shard

ROOT = Path(__file__).parent.parent
matplotlib.use('Agg')

def make_store(path, train, valid=(0,1), codec=SimpleNamespace(name='tiny', fingerprint='one'), size=4, seed=0):
    "Latents around a mean of their class, with these labels"
    rng, labels = np.random.default_rng(seed), dict(train=np.array(train), valid=np.array(valid))
    n = max(2, *(int(o.max())+1 for o in labels.values() if len(o)))
    means, path = rng.standard_normal((n,4,1,1)), Path(path)
    def latents(y): return (means[y]+rng.standard_normal((len(y),4,size,size))).astype(np.float16)
    path.mkdir()
    shards = [write_shard(path/f'{k}-00000.arrow', latents(y), y, [f'{k}{i}' for i in range(len(y))], flips=latents(y)) for k,y in labels.items() if len(y)]
    write_index(path, shards, codec, 8*size, (4,size,size), [f'class {i}' for i in range(n)], ['latent_flip'])
    return LatentStore(path)

@pytest.fixture
def store(tmp_path): return make_store(tmp_path/'store', [0,1,2]*40, [0,1,2]*8)

class StopAt(Callback):
    order, run_valid = 70, False
    def __init__(self, epoch, batch): self.at = epoch, batch
    def after_batch(self):
        if (self.epoch, self.iter)==self.at: raise KeyboardInterrupt

@pytest.mark.parametrize('arch', ['tiny','course'])
def test_a_resumed_run_ends_like_an_unbroken_one(store, tmp_path, arch):
    small = dict(nfs=(8,12,16,20,24)) if arch=='course' else {}
    def train(folder, *cbs):
        learn = classifier_learner(store, arch=arch, bs=16, seed=3, **small)
        learn.fit_quietly(3, 1e-2, progress=False, cbs=[Checkpoint(folder/'checkpoint.pt', every=0), *cbs])
        return learn
    whole = train(tmp_path/'whole')
    for at in (0,2), (1,4):
        with pytest.raises(KeyboardInterrupt): train(tmp_path/'broken', StopAt(*at))
    torch.manual_seed(99)
    resumed = train(tmp_path/'broken')
    for (k,a),b in zip(whole.model.state_dict().items(), resumed.model.state_dict().values()): assert torch.allclose(a.float(), b.float(), atol=1e-6), k
    assert np.allclose([list(r)[1:4] for r in whole.recorder.values], [list(r)[1:4] for r in resumed.recorder.values], atol=1e-6)

def test_it_learns_from_a_store_in_one_call(store):
    learn = classifier_learner(store.path, arch='tiny', bs=32, seed=0)
    learn.fit_quietly(6, 1e-2, progress=False)
    with learn.no_bar(): assert learn.validate()[1]>.8

@pytest.mark.parametrize('labels,valid,said', [([0,1,-1]*9, [0,1], '9 of the 27 train pictures'), ([0,1]*9, [0,-1], '1 of the 2 valid pictures'),
                                               ([1]*9, [1,1], 'all of one class (class 1)')])
def test_labels_that_cannot_train_are_refused(tmp_path, labels, valid, said):
    with pytest.raises(ValueError) as e: classifier_learner(make_store(tmp_path/'store', labels, valid))
    assert said in str(e.value) and 'latentfast encode' in str(e.value)

def test_a_class_with_one_picture_is_warned_about(tmp_path):
    with pytest.warns(UserWarning, match=r'class 2 \(1\)'): classifier_learner(make_store(tmp_path/'store', [0,1]*9+[2]))

def test_latents_of_another_autoencoder_are_refused(store, tmp_path):
    model = classifier_learner(store, arch='tiny').model
    other = make_store(tmp_path/'other', [0,1,2]*9, codec=SimpleNamespace(name='sd', fingerprint='two'))
    for f in (lambda: model.check_store(other), lambda: model.adapt_to(other), lambda: classifier_learner(other, model)):
        with pytest.raises(ValueError, match=r'tiny \(one.*sd \(two'): f()

def test_interpretation(store, monkeypatch):
    learn = classifier_learner(store, arch='tiny', bs=16, seed=0)
    monkeypatch.setattr(type(learn.dls), 'codec', SimpleNamespace(decode=lambda z: z[:,:3].clamp(-1,1).repeat_interleave(8, 2).repeat_interleave(8, 3)))
    with learn.no_bar():
        interp = LatentInterpretation.from_learner(learn)
        assert interp.confusion_matrix().sum()==24
        losses, rows = interp.top_losses(5)
        x, preds, targs, decoded, again = interp[rows]
        assert torch.equal(losses, again) and (losses.diff()<=0).all()
        assert torch.allclose(-preds[range(5),targs].log(), losses, atol=1e-3)
        interp.plot_top_losses(4)
        learn.show_results(max_n=3)

def test_bundled_weights_load_from_half_precision(store, tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, 'BUNDLED', tmp_path)
    with pytest.raises(FileNotFoundError, match='train_classifier.py'): LatentClassifier.from_pretrained('tiny-imagenet')
    learn = classifier_learner(store, arch='tiny', seed=0)
    before = learn.model.eval()(torch.ones(1,4,4,4))
    learn.model.half().save_pretrained(tmp_path/'classifier')
    after = LatentClassifier.from_pretrained('tiny-imagenet')
    assert {p.dtype for p in after.parameters()}=={torch.float32} and after.config.fingerprint=='one'
    assert torch.allclose(before, after.eval()(torch.ones(1,4,4,4)), atol=.02)

@pytest.mark.skipif(not (ROOT/'latentfast/models/classifier/config.json').exists(), reason='no weights are bundled')
def test_the_bundled_classifier():
    folder, model = ROOT/'latentfast/models/classifier', LatentClassifier.from_pretrained('tiny-imagenet').eval()
    assert sum(p.stat().st_size for p in folder.iterdir()) < 8_000_000
    assert model.config.fingerprint==LatentCodec.from_pretrained('tiny').fingerprint and len(model.config.classes)==200
    for s in (8,16,32):
        maps = model.features(torch.randn(2,4,s,s), [0,1,-1])
        assert all(m.isfinite().all() for m in maps) and model.features(torch.randn(2,4,s,s)).shape==(2, maps[-1].shape[1])

def run(script, *args, cwd):
    r = subprocess.run([sys.executable, str(ROOT/script), *map(str, args)], cwd=cwd, capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert r.returncode==0, r.stderr[-3000:]
    return r.stdout

@pytest.mark.slow
def test_the_bench_keeps_its_rows(store, tmp_path):
    cases = 'default course resnet vit ema small_first mixup cutmix muon'.split()  # convnext wants 8x8 latents or more
    args = 'bench/classifier.py', store.path, '--case', *cases, '--budget', 1, '--hold-out', .2
    run(*args, cwd=tmp_path)
    rows = (tmp_path/'classifier.jsonl').read_text()
    assert [json.loads(l)['case'] for l in rows.splitlines()]==cases
    assert 'default' in run(*args, cwd=tmp_path) and (tmp_path/'classifier.jsonl').read_text()==rows

@pytest.mark.slow
def test_the_script_that_trains_the_bundled_weights(tmp_path):
    make_store(tmp_path/'store', [0,1,2,3,4,5]*20, [0,1,2,3,4,5]*4, codec=LatentCodec.from_pretrained('tiny'))
    args = 'scripts/train_classifier.py', tmp_path/'store', '--out', tmp_path/'out', '--epochs', 2
    first = run(*args, cwd=tmp_path)
    assert 'top-1' in first and run(*args, cwd=tmp_path)==first
    assert LatentClassifier.from_pretrained(tmp_path/'out').config.classes[5]=='class 5'
