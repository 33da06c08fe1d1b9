"Files of weights that are not whole: diffusers fills what is missing with random numbers, and says nothing"
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
