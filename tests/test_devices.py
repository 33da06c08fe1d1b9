"Everything goes to the best device where none is asked for: `meta` stands for it here, which holds shapes only."
import pytest, torch
from latentfast.callbacks import LatentDistributedDL, _rng_state, _set_rng_state
from latentfast.classifier import LatentClassifier, classifier_learner
from latentfast.data import latent_dls
from latentfast.encode import encode
from latentfast.evaluation import feature_net, _codec
from latentfast.schedule import _fine
from latentfast.training import diffusion_learner
from latentfast.unet import LatentUNet
from latentfast.vae_training import picture_dls
from conftest import make_pictures

@pytest.fixture(scope='module')
def store(codec, tmp_path_factory):
    tmp = tmp_path_factory.mktemp('devices')
    return encode(make_pictures(tmp/'pictures', 24), tmp/'store', codec=codec, size=32, valid_pct=.3, progress=False)

@pytest.fixture
def best(monkeypatch):
    for m in 'data','evaluation','vae_training': monkeypatch.setattr(f'latentfast.{m}.default_device', lambda: torch.device('meta'))

def where(net): return {p.device.type for p in net.parameters()}

def test_training_goes_to_the_best_device(best, store):
    dls = latent_dls(store, bs=4)
    assert dls.device.type=='meta' and {o.device.type for o in dls.one_batch()}=={'meta'} and dls.codec.device.type=='meta'
    learners = [diffusion_learner(dls, LatentUNet(nfs=(8,16), num_layers=1)), classifier_learner(dls, arch='tiny')]
    for learn in learners:
        learn('before_fit'); assert where(learn.model)=={'meta'}
    assert picture_dls(store.path.parent/'pictures', size=32, bs=4).device.type=='meta'
    assert latent_dls(store, bs=4, device='cpu').one_batch()[0].device.type=='cpu'

def test_what_is_loaded_by_name_goes_to_the_best_device(best, store, tmp_path):
    with torch.device('cpu'): net = LatentClassifier(nfs=(8,16), n_blocks=(1,), n_classes=2, latent_size=8)
    net.save_pretrained(tmp_path/'clf')
    assert where(feature_net(tmp_path/'clf'))=={'meta'} and _codec(store).device.type=='meta'

def test_weights_are_loaded_where_the_data_are(store, tmp_path):
    "Or the optimiser's state would stay behind when the training begins"
    learn = diffusion_learner(latent_dls(store, bs=4, device='cpu'), LatentUNet(nfs=(8,16), num_layers=1), path=tmp_path)
    learn.save('w'); moved = []
    learn.model.to = lambda device: moved.append(device)
    learn.load('w'); assert [str(d) for d in moved]==['cpu']

def test_random_numbers_of_another_machine(store):
    state = _rng_state(torch.device('cpu')); a = torch.rand(3)
    assert state['device'] is None
    _set_rng_state({**state, 'device': torch.zeros(16, dtype=torch.uint8)}, torch.device('cpu'))  # saved on a GPU
    assert torch.equal(torch.rand(3), a)
    assert _fine(torch.ones(1)).dtype==torch.float64

def test_fewer_pictures_than_a_batch_of_all_processes(store):
    pytest.importorskip('accelerate')
    dl = latent_dls(store, bs=len(store.train)//2).train
    assert len(LatentDistributedDL(dl, rank=0, world_size=2))==1
    with pytest.raises(ValueError, match='take smaller batches'): LatentDistributedDL(dl, rank=0, world_size=3)
