"""Train the bundled autoencoder `tiny` (a diffusers AutoencoderKL: 8 times down, 4 channels, 2.81 M parameters) on folders of pictures.

    python scripts/train_tiny.py --steps 20000 PHOTOS [PHOTOS ...]

Each folder gives the same share of the pictures, however many it has; a tenth of each is held out where it has no valid folder. Losses:
L1, LPIPS, KL and a PatchGAN, as `latentfast.vae_training.vae_learner` has them. Three things are added, since the codec has to serve
pictures of all sizes and colours: half of the batches are reduced to half the size; half of each batch gets other and stronger colours,
for photos are mostly blue and brown; and as photos alone spend all four channels on brightness and on blue against orange, channel 0 is
pulled to green against magenta for the first 40 % of a run. The weights that are saved are an exponential moving average, in float16. A
checkpoint is written every five minutes: Ctrl-C or a kill loses no more, and the same command goes on. Pictures on the way are in
WORK/progress.
"""
import argparse, json
from functools import partial
from pathlib import Path
import torch, torch.nn.functional as F
from fastai.optimizer import OptimWrapper
from fasttransform import ItemTransform
from latentfast.autoencoder import LatentCodec
from latentfast.callbacks import Checkpoint
from latentfast.lpips import LPIPS
from latentfast.vae_training import LossTerm, ReconstructionProgress, evaluate_codec, codec_report, picture_dls, vae_learner

class Vary(ItemTransform):
    "Half of a batch with other and stronger colours; half of the batches at half the size"
    def encodes(self, b):
        x, n = b[0], len(b[0])//2
        grey, strength = x[:n].mean(1, keepdim=True), .5+2.5*torch.rand(n,1,1,1)
        x[:n] = (grey + strength*(x[:n]-grey))[:, torch.randperm(3)].clamp(-1,1)
        if torch.rand(())<.5: x = F.interpolate(x, scale_factor=.5, mode='bicubic', antialias=True).clamp(-1,1)
        return (x, *b[1:])

class Colours(LossTerm):
    "Each latent's patch has the right mean colour, and channel 0 learns green against magenta first"
    def term(self):
        x, y, mean = (F.avg_pool2d(o, 8) for o in (self.yb[0], self.pred, F.interpolate(self.reconstruct.latent[0], scale_factor=8.)))
        guide = F.mse_loss(mean[:,0], 4*(x[:,1]-(x[:,0]+x[:,2])/2))*max(0, 1-self.pct_train/.4)
        self.watch.note('colours', F.l1_loss(y, x))
        return F.l1_loss(y, x) + guide

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('photos', nargs='+', help='folders of photos')
    ap.add_argument('--out', default='latentfast/models/tiny', help='where config.json and fp16 safetensors go')
    ap.add_argument('--work', default='tiny-training', help='folder for the checkpoint and the pictures on the way')
    ap.add_argument('--steps', type=int, default=20000)
    ap.add_argument('--epoch', type=int, default=1000, help='steps between two looks at the held-out pictures')
    ap.add_argument('--size', type=int, default=128); ap.add_argument('--batch-size', type=int, default=8)
    ap.add_argument('--lr', type=float, default=1e-3)
    ap.add_argument('--colours', type=float, default=1., help='weight of the two colour terms')
    ap.add_argument('--lpips', default='tiny', help="'tiny', a folder, or none"); ap.add_argument('--lpips-weight', type=float, default=1.)
    ap.add_argument('--kl-weight', type=float, default=.05); ap.add_argument('--disc-weight', type=float, default=.5)
    ap.add_argument('--disc-start', type=int, default=8000, help='steps without the PatchGAN')
    ap.add_argument('--disc-channels', type=int, default=32)
    ap.add_argument('--start', nargs='+', metavar='CODEC', help="a codec to go on from: 'tiny', or a folder; or two, whose weights are averaged")
    ap.add_argument('--mix', type=float, default=.75, help='share of the second of two codecs to start from'); ap.add_argument('--seed', type=int, default=0)
    a = ap.parse_args()
    work, settings = Path(a.work), {k: v for k,v in vars(a).items() if k not in ('out','work')}
    dls = picture_dls(a.photos, a.size, bs=a.batch_size, min_scale=.33, per_epoch=a.epoch*a.batch_size, n_valid=200,
                      augment=Vary(), seed=a.seed)
    models = [LatentCodec.from_pretrained(o).model.requires_grad_(True) for o in a.start or []]
    model = models[0] if models else None
    if len(models)==2:
        with torch.no_grad():
            for p,q in zip(*(m.parameters() for m in models)): p.lerp_(q, a.mix)
    lpips = None if a.lpips=='none' else LPIPS.from_pretrained(a.lpips)
    adam = partial(OptimWrapper, opt=partial(torch.optim.Adam, betas=(.9,.99), fused=True))
    learn = vae_learner(dls, size='tiny', model=model, l2=2., lpips=lpips, lpips_weight=a.lpips_weight, kl_weight=a.kl_weight,
        disc_weight=a.disc_weight, disc_start=a.disc_start, disc_channels=a.disc_channels, seed=a.seed, opt_func=adam,
        cbs=[Colours(a.colours)] if a.colours else None)
    def told(epoch):
        row = dict(zip(learn.recorder.metric_names[1:-1], (float(v) for v in learn.recorder.values[-1])))
        with open(work/'log.jsonl', 'a') as f: f.write(json.dumps(dict(steps=learn.reconstruct.steps, **row))+'\n')
    cbs = [Checkpoint(work/'checkpoint.pt', settings, after_save=told), ReconstructionProgress(every=a.epoch, folder=work/'progress')]
    learn.fit_quietly(a.steps//a.epoch, a.lr, label='tiny', moms=(.9,.9,.9), cbs=cbs)
    codec = learn.export_codec(a.out, half=True)
    print(codec); print(codec_report(evaluate_codec(codec, torch.cat([b[0] for b in dls.valid]))))

if __name__=='__main__': main()
