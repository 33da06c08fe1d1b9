"""How long a training step takes: samples a second against other ways to train, and seconds with and without the perceptual loss.

    python bench/train_step.py [--quick] [--case CASE ...]

unet_small, unet_small_32, unet_course (samples/s): `diffusion_learner` with its defaults, against
  eager_fp32                    the same network, with PyTorch's convolutions, in the course's loop: float32, AdamW, nothing else
  diffusers_unet2d              diffusers' UNet2DModel of about the same size, as its training script has it: float32, AdamW, EMA
  denoising_diffusion_pytorch   lucidrains' Unet of about the same size, with GaussianDiffusion's own loss; left out where it isn't installed
perceptual_pooled, perceptual_layers, perceptual_decoder, perceptual_alignments (s): a step of unet_small with the loss (of the classifier `small`, the
  targets known from the cache), against
  mse_only                      the same without it
Latents are 4x8x8, 64 a batch, or for unet_small_32 and unet_course 4x32x32, 16 a batch, all random: a step's time doesn't depend on what they show.
"""
import argparse, copy, tempfile, warnings
from pathlib import Path
from types import SimpleNamespace
import numpy as np, torch, torch.nn.functional as F
from compare import compare, plain_convolutions, seconds, show

def make_store(path, n, size=8):
    from latentfast.autoencoder import LatentCodec
    from latentfast.store import LatentStore, write_index, write_shard
    z = np.random.default_rng(0).standard_normal((n,4,size,size), np.float32).astype(np.float16)
    path.mkdir()
    write_index(path, [write_shard(path/'train-00000.arrow', z, np.arange(n)%10, [str(i) for i in range(n)])], LatentCodec.from_pretrained('tiny'), 8*size, (4,size,size), [str(i) for i in range(10)])
    return LatentStore(path)

class Steps:
    "A training that goes on by some steps whenever it is called"
    def __init__(self, net, loss, opt, bs, size=8, ema=False):
        self.net, self.loss, self.opt, self.bs, self.size = net, loss, opt, bs, size
        self.average = copy.deepcopy(net) if ema else None
    def __call__(self, n):
        for _ in range(n):
            self.opt.zero_grad()
            loss = self.loss(self.net, torch.randn(self.bs, 4, self.size, self.size))
            loss.backward(); self.opt.step(); loss.item()
            if self.average is not None:
                with torch.no_grad():
                    for a,p in zip(self.average.parameters(), self.net.parameters()): a.lerp_(p, .001)

def eager(size, bs, hw):
    "The course's loop: noise, predict, MSE, AdamW, in float32, with PyTorch's convolutions"
    from latentfast.schedule import abar, add_noise
    from latentfast.unet import LatentUNet
    net = plain_convolutions(LatentUNet.from_size(size))
    def loss(net, x0):
        t, eps = torch.rand(bs)*.999, torch.randn_like(x0)
        return F.mse_loss(net(add_noise(x0, eps, abar(t)), t*1000).sample, eps)
    return Steps(net, loss, torch.optim.AdamW(net.parameters(), 1e-3), bs, hw)

def diffusers_unet2d(size, bs, hw):
    from diffusers import DDPMScheduler, UNet2DModel
    widths = dict(small=(64,128,192), course=(224,448,672,672))[size]
    net = UNet2DModel(sample_size=hw, in_channels=4, out_channels=4, layers_per_block=2, block_out_channels=widths, norm_num_groups=32,
                      down_block_types=('DownBlock2D',)+('AttnDownBlock2D',)+('DownBlock2D',)*(len(widths)-2), up_block_types=('UpBlock2D',)*(len(widths)-2)+('AttnUpBlock2D','UpBlock2D'))
    scheduler = DDPMScheduler(1000)
    def loss(net, x0):
        t, eps = torch.randint(0, 1000, (bs,)), torch.randn_like(x0)
        return F.mse_loss(net(scheduler.add_noise(x0, eps, t), t).sample, eps)
    return Steps(net, loss, torch.optim.AdamW(net.parameters(), 1e-4, betas=(.95,.999), weight_decay=1e-6), bs, hw, ema=True)

def lucidrains(size, bs, hw):
    try: from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    except ImportError: print('denoising_diffusion_pytorch is not installed, so it is left out: pip install denoising-diffusion-pytorch'); return None
    net = GaussianDiffusion(Unet(dim=dict(small=64, course=224)[size], dim_mults=(1,2,4), channels=4, flash_attn=False), image_size=hw, timesteps=1000, auto_normalize=False)
    return Steps(net, lambda net, x0: net(x0), torch.optim.Adam(net.parameters(), 1e-4), bs, hw)

def learner(store, size, bs, **kwargs):
    "`n` steps of a `diffusion_learner`, without validation"
    from latentfast.data import latent_dls
    from latentfast.training import diffusion_learner
    learn = diffusion_learner(latent_dls(store, bs=bs, seed=0, index=True), size=size, seed=0, **kwargs)
    learn.dls.valid.n = 0
    def steps(n):
        learn.dls.train.n = n*bs
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-4)
    steps.params = sum(p.numel() for p in learn.model.parameters())
    return steps

def run(quick=False, cases=()):
    from latentfast.autoencoder import LatentCodec
    from latentfast.classifier import LatentClassifier
    from latentfast.feature_nets import DecoderFeatures, alignments
    from latentfast.perceptual import PerceptualLoss
    steps, runs, out = (8, 2, []) if quick else (20, 5, [])
    with tempfile.TemporaryDirectory() as tmp:
        store = make_store(Path(tmp)/'store', 64*64)
        large = make_store(Path(tmp)/'large', 64*16, 32)
        def case(name): return name in cases if cases else name=='unet_small' or not quick
        for name,size,bs,hw,k in ('unet_small','small',64,8,steps), ('unet_small_32','small',16,32,steps//2), ('unet_course','course',16,32,1):
            if not case(name): continue
            ours = learner(large if hw==32 else store, size, bs)
            for peer,make in ('eager_fp32',eager), ('diffusers_unet2d',diffusers_unet2d), ('denoising_diffusion_pytorch',lucidrains):
                if (theirs := make(size, bs, hw)) is None: continue
                print(f'{peer}: {sum(p.numel() for p in theirs.net.parameters())/1e6:.2f} M parameters, ours {ours.params/1e6:.2f} M')
                out.append(compare('train_step', name, peer, 'samples/s', lambda: ours(k), lambda: theirs(k), count=k*bs, runs=runs if size=='small' else 2))
        net = LatentClassifier.from_size('small', n_classes=10, latent_size=8)
        decoder = lambda: PerceptualLoss(DecoderFeatures(LatentCodec.from_pretrained('tiny'), store.normalizer), layers=[0,1], norm='target')
        losses = dict(perceptual_pooled=lambda: PerceptualLoss(net), perceptual_layers=lambda: PerceptualLoss(net, layers=[-3,-2,-1]), perceptual_decoder=decoder, perceptual_alignments=lambda: alignments(net))
        for name,loss in losses.items():
            if cases and name not in cases: continue
            mse, both = learner(store, 'small', 64), learner(store, 'small', 64, perceptual=loss())
            out.append(compare('train_step', name, 'mse_only', 's', lambda: both(steps), lambda: mse(steps), runs=runs))
            out[-1].update(ours=out[-1]['ours']/steps, theirs=out[-1]['theirs']/steps)
    return out

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--quick', action='store_true', help='few steps; only unet_small and the losses')
    p.add_argument('--case', nargs='*', default=(), help='only these cases')
    a = p.parse_args()
    warnings.filterwarnings('ignore')
    show(run(a.quick, a.case))
