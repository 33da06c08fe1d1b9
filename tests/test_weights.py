"Files of weights that are not whole: diffusers fills what is missing with random numbers, and says nothing"
import os, subprocess, sys
import pytest
from safetensors.torch import load_file, save_file
from latentfast.autoencoder import LatentCodec
from latentfast.classifier import LatentClassifier
from latentfast.lpips import LPIPS
from latentfast.unet import LatentUNet
from latentfast.vae_training import make_autoencoder

MADE = dict(
    autoencoder=(lambda: make_autoencoder(channels=(8,8), layers=1, attention=False), LatentCodec.from_pretrained),
    classifier=(lambda: LatentClassifier.from_size('tiny', n_classes=3, latent_size=8), LatentClassifier.from_pretrained),
    lpips=(lambda: LPIPS.from_pretrained('tiny'), LPIPS.from_pretrained),
    unet=(lambda: LatentUNet(nfs=(8,16), num_layers=1), LatentUNet.from_pretrained))

@pytest.mark.parametrize('kind', MADE)
def test_missing_weights_are_an_error(tmp_path, kind):
    make, load = MADE[kind]
    make().save_pretrained(tmp_path/kind)
    load(tmp_path/kind)
    file = tmp_path/kind/'diffusion_pytorch_model.safetensors'
    weights = load_file(file); name = sorted(weights)[-1]; del weights[name]
    save_file(weights, file, dict(format='pt'))
    with pytest.raises(ValueError, match='missing') as e: load(tmp_path/kind)
    assert name in str(e.value)

def test_an_autoencoder_of_the_hub(tmp_path):
    "From the cache that the hub's library keeps, as if it had been downloaded; and one that isn't whole"
    repo, sha = tmp_path/'hub'/'models--me--vae', 'a'*40
    (repo/'refs').mkdir(parents=True); (repo/'refs'/'main').write_text(sha)
    MADE['autoencoder'][0]().save_pretrained(repo/'snapshots'/sha)
    env = {**os.environ, 'HF_HOME': str(tmp_path), 'HF_HUB_CACHE': str(tmp_path/'hub'), 'HF_HUB_OFFLINE': '1'}
    code = "from latentfast.autoencoder import LatentCodec; print(LatentCodec.from_pretrained('me/vae'))"
    def load(): return subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)
    assert 'AutoencoderKL' in load().stdout
    file = repo/'snapshots'/sha/'diffusion_pytorch_model.safetensors'
    weights = load_file(file); del weights[sorted(weights)[-1]]; save_file(weights, file, dict(format='pt'))
    assert 'ValueError: me/vae holds the weights of another network, or not all' in load().stderr
