"What all tests share: a small autoencoder with random weights, and small pictures"
import os, signal
os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('HF_HUB_OFFLINE', '1')
from pathlib import Path
import numpy as np, pytest
from PIL import Image

def make_codec(folder, seed=0):
    "Save an AutoencoderKL with random weights: 8 times down, 4 channels, few of everything else"
    import torch
    from diffusers import AutoencoderKL
    state = torch.get_rng_state(); torch.manual_seed(seed)
    AutoencoderKL(down_block_types=('DownEncoderBlock2D',)*4, up_block_types=('UpDecoderBlock2D',)*4, block_out_channels=(8,)*4,
                  layers_per_block=1,
                  latent_channels=4, norm_num_groups=4, mid_block_add_attention=False, sample_size=32).save_pretrained(folder)
    torch.set_rng_state(state)
    return Path(folder)

def make_pictures(folder, n, classes=('cat','dog'), size=(40,36), suffix='.png', seed=0):
    "Blobs of colour in class folders; picture i is `folder/<class>/<i>.png`"
    rng = np.random.default_rng(seed)
    for i in range(n):
        f = Path(folder)/classes[i%len(classes)]/f'{i:04d}{suffix}'; f.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (4,5,3), np.uint8)).resize(size, Image.Resampling.BICUBIC).save(f)
    return Path(folder)

@pytest.fixture(scope='session')
def codec_folder(tmp_path_factory): return make_codec(tmp_path_factory.mktemp('codec'))

@pytest.fixture(scope='session')
def codec(codec_folder):
    from latentfast.autoencoder import LatentCodec
    return LatentCodec.from_pretrained(str(codec_folder))

@pytest.fixture
def pictures(tmp_path): return make_pictures(tmp_path/'pictures', 24)

@pytest.fixture
def interrupts():
    "Ctrl-C interrupts, also where the tests are a job in the background, which ignores it"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
