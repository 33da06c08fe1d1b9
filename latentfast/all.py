"Everything in one import, fastai style: `from latentfast.all import *`"
from .scenes import *
from .autoencoder import *
from .store import *
from .sources import *
from .encode import *
from .data import *
from .callbacks import *
from .classifier import *
from .schedule import *
from .unet import *
from .perceptual import *
from .sampling import *
from .training import *
from .pipeline import *
from .evaluation import *
from .demo import *
