__version__ = "0.1.0"

def __getattr__(name):
    "The classes that a saved pipeline's model_index.json names; diffusers looks them up here, and importing the package stays light"
    if name=='LatentUNet': from .unet import LatentUNet as found
    elif name=='LatentDiffusionPipeline': from .pipeline import LatentDiffusionPipeline as found
    elif name=='ModelMixin': from diffusers import ModelMixin as found
    else: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return found
