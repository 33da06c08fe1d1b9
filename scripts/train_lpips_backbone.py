"""Train the LPIPS that ships with the package, `LPIPS.from_pretrained('tiny')`, on folders of classes such as Tiny ImageNet's.

    python scripts/train_lpips_backbone.py TINY_IMAGENET

First the backbone, a small DLA (Yu et al. 2018, from timm) whose first maps have the size of the picture, learns to name what is in a
picture of 64 pixels. Then it is frozen, and the heads are trained on triplets made from the same pictures, of which the nearer one is
known: nobody's answers are in them. `--triplets 0` leaves the heads equal. Ctrl-C or a kill loses at most five minutes: the same command
goes on.
"""
import argparse
from pathlib import Path
import numpy as np, torch
from torch import nn
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from latentfast.callbacks import AutoPrecision, Checkpoint, EpochSeed, fused_adamw
from latentfast.classifier import LatentCropErase
from latentfast.lpips import LPIPS, DistortionTriplets, lpips_learner, score_2afc, triplet_dls
from latentfast.vae_training import picture_dls

NET = dict(backbone='dla34', layers=(0,1,2,3,4), backbone_args=dict(levels=[1]*6, channels=[16,32,64,96,128,128]))

class Classifier(nn.Module):
    "The backbone of an `LPIPS` with a head for classes on its last map"
    def __init__(self, net, n_classes):
        super().__init__()
        self.backbone = net.backbone.requires_grad_(True)
        self.head = nn.Sequential(nn.Dropout(.1), nn.Linear(net.backbone.feature_info.channels()[-1], n_classes))
        for k in ('shift','scale'): self.register_buffer(k, getattr(net, k))
    def forward(self, x): return self.head(self.backbone(((x+1)/2-self.shift)/self.scale)[-1].mean((2,3)))

def l2(x, y): return (x-y).square().flatten(1).mean(1)

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('pictures', help='a folder with a folder for each class, below train and valid if you like')
    ap.add_argument('--out', default='latentfast/models/lpips', help='where config.json and fp16 safetensors go')
    ap.add_argument('--work', default='lpips-training', help='folder for the checkpoints')
    ap.add_argument('--size', type=int, default=64, help='pixels on each side'); ap.add_argument('--epochs', type=int, default=20)
    ap.add_argument('--per-epoch', type=int, help='training pictures in an epoch; all if not given')
    ap.add_argument('--batch-size', type=int, default=128); ap.add_argument('--lr', type=float, default=4e-3)
    ap.add_argument('--triplets', type=int, default=10000, help='triplets that the heads are trained on, twice; 0: all weights equal')
    ap.add_argument('--seed', type=int, default=0)
    a = ap.parse_args()
    work, settings = Path(a.work), {k: v for k,v in vars(a).items() if k not in ('out','work')}
    torch.manual_seed(a.seed)
    net, dls = LPIPS(**NET), picture_dls(a.pictures, a.size, bs=a.batch_size, per_epoch=a.per_epoch, seed=a.seed)
    model = Classifier(net, len(dls.train_ds.classes))
    cbs = [AutoPrecision(), EpochSeed(a.seed), LatentCropErase(pad=a.size//8, max_num=1), Checkpoint(work/'backbone.pt', settings)]
    learn = Learner(dls, model, loss_func=CrossEntropyLossFlat(label_smoothing=.1), metrics=accuracy, opt_func=fused_adamw, train_bn=False, cbs=cbs)
    learn.fit_quietly(a.epochs, a.lr, label='backbone', wd=.05)
    print('accuracy', learn.recorder.values[-1][-1])
    net = LPIPS(**NET); net.backbone.load_state_dict(model.to(memory_format=torch.contiguous_format).backbone.state_dict())
    if a.triplets:
        square = lambda ds, n: np.stack([ds.square(int(k)) for k in np.linspace(0, len(ds)-1, min(n, len(ds)))])
        train = DistortionTriplets(square(dls.train_ds, 2000), a.triplets, a.seed)
        valid = DistortionTriplets(square(dls.valid_ds, 1000), 1000, a.seed+1)
        print(f'2AFC: L2 {score_2afc(l2, valid):.3f}, equal weights {score_2afc(net.eval(), valid):.3f}', flush=True)
        learn = lpips_learner(triplet_dls(train, valid), net, seed=a.seed, cbs=Checkpoint(work/'heads.pt', settings))
        learn.fit_quietly(2, .02, label='heads')
        print(f'2AFC: trained weights {score_2afc(net.eval(), valid):.3f}')
    net.half().save_pretrained(a.out)
    print(f'{a.out}: {sum(p.numel() for p in net.parameters())/1e6:.2f} M parameters')

if __name__=='__main__': main()
