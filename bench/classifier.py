"""Which network and which recipe classify latents best in a given time: one row a candidate, on pictures that no choice was made by.

    latentfast encode PICTURES STORE --size 128 --flip
    python bench/classifier.py STORE [--case NAME ...] [--budget 180] [--seed 0 ...] [--out classifier.jsonl]
    python bench/classifier.py STORE --case default course --budget 1200 --seed 0 1 2 --valid
    python bench/classifier.py STORE --case default pixels --pictures PICTURES --budget 1200 --valid

Every candidate trains for the same time, by one cycle that ends when the time is up: the schedule follows the clock and not the number of
steps. On the CPU that clock counts the seconds which the process had the processor for, so that other programs don't matter. Judged by a
tenth of the training pictures, that is held out here; by the store's own validation pictures with --valid only, for figures to quote.
Each finished row is kept in the file --out; the same command goes on after the last one.

`pixels` is the default's network on the pictures themselves, 64x64: each cell of 4x4 pixels becomes 48 channels, so that the network is
the same from its first map of 16x16 on. It says how much the latents lose.
"""
import argparse, json, time, warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace
import numpy as np, torch, torch.nn.functional as F
from fastai.callback.core import Callback, CancelFitException, CancelValidException
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.schedule import *
from fastai.optimizer import OptimWrapper
from torch import nn
from latentfast.classifier import LatentClassifier, LatentCropErase, classifier_learner
from latentfast.data import LatentDL, LatentDataLoaders, NormalizeLatents, latent_dls
from latentfast.sources import find_pictures, load_picture
from latentfast.store import LatentNormalizer, LatentStore
from latentfast.training import EMA

def timm_net(net, n_classes, hw):
    "A timm network without head as the trunk of a `LatentClassifier`"
    model = LatentClassifier(nfs=(8,8), n_blocks=(1,), n_classes=n_classes, latent_size=hw)
    model.trunk, model.head = net, nn.Linear(net.num_features, n_classes)
    return model

def resnet(n_classes, hw, channels=(32,64,128,256), layers=(2,2,2,2)):
    "A timm ResNet whose stem keeps the size"
    from timm.models.resnet import BasicBlock, ResNet
    net = ResNet(BasicBlock, layers, num_classes=0, in_chans=4, channels=channels, stem_width=channels[0])
    net.conv1, net.maxpool = nn.Conv2d(4, net.conv1.out_channels, 3, padding=1, bias=False), nn.Identity()
    return timm_net(net, n_classes, hw)

def convnext(n_classes, hw):
    "A timm ConvNeXt of about the size of its `atto`, with patches of one cell"
    from timm.models.convnext import ConvNeXt
    return timm_net(ConvNeXt(num_classes=0, in_chans=4, patch_size=1, depths=(2,2,4,2), dims=(40,80,160,320)), n_classes, hw)

def vit(n_classes, hw):
    "A timm ViT of half of `tiny`'s depth, with patches of 2x2 cells"
    from timm.models.vision_transformer import VisionTransformer
    return timm_net(VisionTransformer(img_size=hw, patch_size=2, in_chans=4, num_classes=0, embed_dim=192, depth=6, num_heads=3, global_pool='avg'), n_classes, hw)

class SmallFirst(Callback):
    "Latents averaged to half their size for the first part of the training, at the variance they had"
    order, run_valid = 60, False  # after the augmentation
    def __init__(self, until=.5): self.until = until
    def before_batch(self):
        if self.pct_train>=self.until: return
        x = F.avg_pool2d(self.x, 2)
        self.learn.xb = (x/x.std((0,2,3), keepdim=True)*self.x.std((0,2,3), keepdim=True),)

def muon(params, lr=1e-3, wd=.01, **kwargs):
    "timm's Muon for matrices and kernels, AdamW for what is left"
    from timm.optim import Muon
    return OptimWrapper(params, partial(Muon, algo='muon'), lr=lr, weight_decay=wd)

# What differs from `classifier_learner`'s defaults: its arguments, and net (a function), bs, flip, cbs (functions), opt
CASES = dict(default={}, course=dict(arch='course', flip=False, sched=dict(pct_start=.3)),
    net_wide=dict(nfs=(64,128,256,384), n_blocks=(1,2,2)), net_96=dict(nfs=(32,96,192,320), n_blocks=(1,1,2)),
    resnet=dict(net=resnet), convnext=dict(net=convnext), vit=dict(net=vit), ema=dict(cbs=[EMA]), small_first=dict(cbs=[SmallFirst]),
    no_erase=dict(augment=LatentCropErase(pad=1, max_num=0)), smooth=dict(label_smoothing=.1), mixup=dict(cbs=[lambda: MixUp(.2)]),
    cutmix=dict(cbs=[CutMix]), no_flip=dict(flip=False), lr1=dict(lr=1e-3), lr10=dict(lr=1e-2), muon=dict(opt=muon, bs=128), pixels={})

class Part:
    "Some rows of a dataset"
    def __init__(self, ds, rows): self.ds, self.rows, self.store = ds, rows, ds.store
    def __len__(self): return len(self.rows)
    def __getitem__(self, i): return self.ds[self.rows[i]]
    def __getitems__(self, idxs): return self.ds.__getitems__(self.rows[np.asarray(idxs)])
    @property
    def labels(self): return self.ds.labels[self.rows]

class Pixels:
    "A split of pictures of 64x64 in memory, each cell of 4x4 pixels as 48 channels"
    def __init__(self, pictures, split, flip=False):
        rows = np.flatnonzero(np.asarray(pictures.splits)==split)
        self.x, self.labels, self.flip = torch.empty(len(rows), 3, 64, 64, dtype=torch.uint8), np.asarray(pictures.labels)[rows], flip
        for i,r in enumerate(rows): self.x[i] = torch.from_numpy(load_picture(pictures.open(r), 64)).permute(2,0,1)
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return tuple(o[0] for o in self.__getitems__([i]))
    def __getitems__(self, idxs):
        x = self.x[torch.as_tensor(np.asarray(idxs))]
        if self.flip: x = torch.where(torch.rand(len(x),1,1,1)<.5, x.flip(-1), x)
        return F.pixel_unshuffle(x, 4).float(), torch.from_numpy(self.labels[np.asarray(idxs)])

def pixel_dls(src, bs, seed=0):
    "What `latent_dls` gives, of pixels"
    pictures = find_pictures(src)
    train, valid = Pixels(pictures, 'train', flip=True), Pixels(pictures, 'valid')
    some = F.pixel_unshuffle(train.x[::max(1, len(train)//2000)], 4).float()
    store = SimpleNamespace(path=Path(src), codec='pixels', fingerprint='pixels', latent_shape=(48,16,16), image_size=64,
        classes=pictures.classes, normalizer=LatentNormalizer(some.mean((0,2,3)), some.std((0,2,3))), train=train, valid=valid)
    train.store = valid.store = store
    return loaders(train, valid, store, bs)

def loaders(train, valid, store, bs):
    norm = NormalizeLatents(store.normalizer)
    return LatentDataLoaders(LatentDL(train, bs=min(bs, len(train)), shuffle=True, drop_last=True, after_batch=[norm]),
                             LatentDL(valid, bs=256, after_batch=[norm]), store=store, path=store.path.parent)

def held_out(dls, pct):
    "The same loaders, judged by a share of the training rows that they then don't train on"
    rows, k = np.random.default_rng(0).permutation(len(dls.train_ds)), int(len(dls.train_ds)*pct)
    judge = dls.store.train if hasattr(dls.store.train, 'gather') else Part(dls.train_ds, np.arange(len(rows)))
    return loaders(Part(dls.train_ds, np.sort(rows[k:])), Part(judge, np.sort(rows[:k])), dls.store, dls.train.bs)

class Budget(Callback):
    "The schedule follows a clock; when the time is up the training is over"
    order = 5
    def __init__(self, seconds, clock): self.seconds, self.clock = seconds, clock
    def before_fit(self): self.start, self.seen = self.clock(), 0
    def before_batch(self):
        if not self.training: return
        pct = (self.clock()-self.start)/self.seconds
        if pct>=1: raise CancelFitException()
        self.learn.pct_train, self.seen = pct, self.seen+len(self.x)
    def before_validate(self): raise CancelValidException()

def train(store, budget, seed=0, valid=False, pct=.1, pictures=None, net=None, bs=64, flip=None, cbs=(), opt=None, lr=None,
          sched={}, **kwargs):
    "One candidate: its row"
    cuda = torch.cuda.is_available()
    dls = pixel_dls(pictures, bs) if pictures else latent_dls(store, bs=bs, flip=flip)
    if not valid: dls = held_out(dls, pct)
    if net:
        with torch.random.fork_rng(): torch.manual_seed(seed); kwargs['model'] = net(len(dls.store.classes), dls.store.latent_shape[-1])
    timer = Budget(budget, time.perf_counter if cuda else time.process_time)
    learn = classifier_learner(dls, seed=seed, cbs=[timer, *(f() for f in cbs)], **kwargs)
    if opt: learn.opt_func = opt
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(1000, lr or learn.lr, **sched)
        learn.remove_cbs([timer]); train_loss = float(learn.recorder.losses[-1])
        loss, top1, *top5 = learn.validate()
    return dict(top1=top1, top5=(*top5, 1.)[0], loss=loss, train_loss=train_loss,
                params=sum(p.numel() for p in learn.model.parameters()),
                rate=timer.seen/budget, epochs=timer.seen/len(dls.train_ds), judged_by=len(dls.valid_ds), of='valid' if valid else 'train')

def show(rows):
    print(f'{"candidate":26} seed  budget s  {"top-1":>6} {"top-5":>6}   loss  M params  latents/s  epochs')
    for r in sorted(rows, key=lambda r: -r['top1']):
        print(f'{r["case"]:26} {r["seed"]:4}  {r["budget"]:8.0f}  {r["top1"]:6.1%} {r["top5"]:6.1%}  {r["loss"]:5.3f}  '
              f'{r["params"]/1e6:8.2f}  {r["rate"]:9.0f}  {r["epochs"]:6.1f}')

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('store', help='a labelled store, best with mirrored latents')
    p.add_argument('--case', nargs='*', default=[k for k in CASES if k!='pixels'], choices=list(CASES), help='only these', metavar='NAME')
    p.add_argument('--budget', type=float, default=180, help='seconds of training for each')
    p.add_argument('--seed', type=int, nargs='*', default=[0])
    p.add_argument('--valid', action='store_true', help="judge by the store's validation pictures: not for choosing")
    p.add_argument('--hold-out', type=float, default=.1, help='otherwise: share of the training pictures to judge by')
    p.add_argument('--pictures', help='folder of the pictures, for pixels')
    p.add_argument('--out', default='classifier.jsonl', help='where rows are kept')
    a = p.parse_args()
    warnings.filterwarnings('ignore')
    store, out = LatentStore(a.store), Path(a.out)
    rows = [json.loads(l) for l in out.read_text().splitlines()] if out.exists() else []
    for seed in a.seed:
        for case in a.case:
            if case=='pixels' and not a.pictures: p.error('--case pixels needs --pictures')
            key = dict(case=case, seed=seed, budget=a.budget, valid=a.valid, hold_out=a.hold_out, fingerprint=store.fingerprint,
                       rows=len(store.train))
            if any(key.items()<=r.items() for r in rows): continue
            r = {**key, **train(store, a.budget, seed, a.valid, a.hold_out, a.pictures if case=='pixels' else None, **CASES[case])}
            rows.append(r)
            with open(out, 'a') as f: f.write(json.dumps(r)+'\n')
            show([r])
    show([r for r in rows if r['budget']==a.budget and r['valid']==a.valid and r['fingerprint']==store.fingerprint])

if __name__=='__main__': main()
