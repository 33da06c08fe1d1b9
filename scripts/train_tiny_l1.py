"""What trained the bundled autoencoder `tiny` (a diffusers AutoencoderKL: 8 times down, 4 channels) on folders of pictures, before there was LPIPS here:
its first stage; `train_tiny.py` goes on from its weights.

    python scripts/train_tiny_l1.py --minutes 45 --out latentfast/models/tiny PHOTOS [PHOTOS ...]

Each PHOTOS is a folder that is searched for pictures. A tenth of each, chosen by a hash of the file's name, is held out and only
ever used for the PSNR that is printed. Crops of 64 and 128 pixels are cut from an image pyramid (short side 64 to 256, and small
pictures enlarged twice), so that the codec meets natural, reduced and enlarged pictures. The loss is L1 + 2 MSE + 1e-3 KL and the L1
of each 8x8 patch's mean colour. Left alone it spends all four channels on brightness and on blue against orange, since photos have
little else; so channel 0 is pulled to green against magenta for the first 40 % of a run, and is free from then on. The weights that
are saved are an exponential moving average. Ctrl-C or a kill loses at most a minute: the same command goes on.

The `tiny` that ships had 8,121 steps in three rounds on two CPU cores: 56 minutes on Tiny ImageNet's training pictures and 500 ImageNet photos,
whose colours faded; 10 minutes with 2,000 rendered scenes beside them; and 13 minutes with `--again --lr 1.5e-3` and channel 0 pulled to green
against magenta, which brought the colours back.
"""
import argparse, hashlib, json, time
from pathlib import Path
import numpy as np, torch, torch.nn.functional as F
from PIL import Image
from diffusers import AutoencoderKL

CONFIG = dict(in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D",)*4, up_block_types=("UpDecoderBlock2D",)*4,
              block_out_channels=(16,48,96,120), layers_per_block=1, latent_channels=4, norm_num_groups=8,
              mid_block_add_attention=False, sample_size=128, scaling_factor=1.)
SUFFIXES = {'.jpg', '.jpeg', '.png', '.webp'}

def held_out(path): return hashlib.sha256(path.name.encode()).digest()[0] < 26  # a tenth, and the same one each time

def load_pyramids(folder, sides=(64,128,192,256)):
    "All pictures below `folder` as uint8 arrays, at each of `sides` that is no enlargement: `{side: [array]}` for train and held out"
    train, valid = {}, {}
    for path in sorted(p for p in Path(folder).rglob('*') if p.suffix.lower() in SUFFIXES):
        im, into = Image.open(path).convert('RGB'), (valid if held_out(path) else train)
        for side in sides:
            if side > min(im.size): continue
            scale = side/min(im.size)
            size = [max(side, round(s*scale)) for s in im.size]
            into.setdefault(side, []).append(np.asarray(im if list(im.size)==size else im.resize(size, Image.Resampling.LANCZOS)))
    return train, valid

def random_crops(pictures, n, size, rng):
    "`n` random, randomly mirrored crops as uint8 [n,size,size,3]"
    out = np.empty((n,size,size,3), np.uint8)
    for i in range(n):
        a = pictures[rng.integers(len(pictures))]
        y, x = rng.integers(a.shape[0]-size+1), rng.integers(a.shape[1]-size+1)
        c = a[y:y+size, x:x+size]
        out[i] = c[:,::-1] if rng.random()<.5 else c
    return out

def batch(sets, pixels, rng):
    "A batch in [-1,1] of crops from one set at one scale; half of the small sets' batches are enlarged twice"
    pyramid = sets[rng.integers(len(sets))]
    side = rng.choice(list(pyramid))
    enlarge = side==64 and rng.random()<.5
    size = 64 if side==64 or rng.random()<.5 else 128
    crops = random_crops(pyramid[side], pixels//size**2 // (4 if enlarge else 1), size, rng)
    x = torch.from_numpy(crops).permute(0,3,1,2).contiguous(memory_format=torch.channels_last).float()/127.5-1
    if enlarge: x = F.interpolate(x, scale_factor=2, mode='bicubic', antialias=True).clamp_(-1,1)
    return colourful(x, rng)

def colourful(x, rng):
    "Half of a batch with other and stronger colours: photos are mostly blue and brown, and a codec trained on them alone forgets green and purple"
    n = len(x)//2
    grey, strength = x[:n].mean(1, keepdim=True), torch.from_numpy(rng.uniform(.5, 3, (n,1,1,1)).astype(np.float32))
    x[:n] = (grey + strength*(x[:n]-grey))[:, rng.permutation(3).tolist()].clamp(-1,1)
    return x

def green_magenta(x): return x[:,1]-(x[:,0]+x[:,2])/2

@torch.inference_mode()
def psnr(vae, pictures):
    "Mean PSNR in dB over whole pictures, each cut to a multiple of 8"
    out = []
    for a in pictures:
        h, w = (s//8*8 for s in a.shape[:2])
        x = torch.from_numpy(a[:h,:w].copy()).permute(2,0,1)[None].float()/127.5-1
        y = vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1,1)
        out.append(10*torch.log10(4/F.mse_loss(y, x)).item())
    return float(np.mean(out))

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('photos', nargs='+', help='folders of photos')
    ap.add_argument('--out', default='latentfast/models/tiny', help='where config.json and fp16 safetensors go')
    ap.add_argument('--minutes', type=float, default=45, help='wall time to train for, over all runs')
    ap.add_argument('--pixels', type=int, default=12*64*64, help='pixels in a batch')
    ap.add_argument('--lr', type=float, default=2e-3); ap.add_argument('--seed', type=int, default=0)
    ap.add_argument('--again', action='store_true', help='start another round of --minutes from the weights of the checkpoint')
    ap.add_argument('--checkpoint', default='tiny-checkpoint.pt')
    a = ap.parse_args()
    torch.manual_seed(a.seed); rng = np.random.default_rng(a.seed)
    loaded = [load_pyramids(f) for f in a.photos]
    sets, valids = [t for t,_ in loaded], [{k:v[:60] for k,v in va.items()} for _,va in loaded]
    print([{int(k): len(v) for k,v in s.items()} for s in sets], 'pictures to train on', flush=True)
    vae = AutoencoderKL(**CONFIG).to(memory_format=torch.channels_last)
    ema = AutoencoderKL(**CONFIG).requires_grad_(False); ema.load_state_dict(vae.state_dict())
    opt = torch.optim.AdamW(vae.parameters(), lr=a.lr, betas=(.9,.99), weight_decay=1e-4, fused=True)
    step, spent, ckpt = 0, 0., Path(a.checkpoint)
    if ckpt.exists():
        c = torch.load(ckpt, weights_only=True)
        vae.load_state_dict(c['vae']); ema.load_state_dict(c['ema']); opt.load_state_dict(c['opt']); step, spent = c['step'], c['spent']
        rng = np.random.default_rng(a.seed+step)
        if a.again: spent = 0.
    total, last, saved, losses = a.minutes*60, time.time(), spent, []
    def save():
        tmp = ckpt.with_suffix('.tmp')
        torch.save(dict(vae=vae.state_dict(), ema=ema.state_dict(), opt=opt.state_dict(), step=step, spent=spent), tmp); tmp.replace(ckpt)
    while spent < total:
        done = spent/total
        lr = float(a.lr*min(1, (step+1)/100)*(.5+.5*np.cos(np.pi*done)))
        for g in opt.param_groups: g['lr'] = lr
        x = batch(sets, a.pixels, rng)
        with torch.autocast('cpu', torch.bfloat16):
            post = vae.encode(x).latent_dist
            y = vae.decode(post.sample()).sample.float()
        mse, l1, kl = F.mse_loss(y, x), F.l1_loss(y, x), post.kl().float().sum()/post.mean.numel()
        colour = F.l1_loss(F.avg_pool2d(y, 8), F.avg_pool2d(x, 8))  # each latent's patch has the right mean colour
        guide = F.mse_loss(post.mean[:,0].float(), 4*green_magenta(F.avg_pool2d(x, 8)))*max(0, 1-done/.4)
        (l1 + 2*mse + 2*colour + guide + 1e-3*kl).backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.)
        opt.step(); opt.zero_grad()
        decay = min(.999, (step+1)/(step+10))
        torch._foreach_lerp_(list(ema.parameters()), [p.detach() for p in vae.parameters()], 1-decay)
        step += 1; losses.append((l1.item(), mse.item(), kl.item(), colour.item()))
        now = time.time(); spent += now-last; last = now
        if step%100==0:
            print(f'{spent/60:.1f} min, step {step}, lr {lr:.1e}, l1 %.4f mse %.4f kl %.2f colour %.4f' % tuple(np.mean(losses, 0)), flush=True); losses = []
        if spent-saved > 60: save(); saved = spent
        if step%1000==0: print('held out:', [{int(k): round(psnr(ema, v[:30]), 2) for k,v in va.items()} for va in valids], flush=True); last = time.time()
    save()
    print('held out, final:', [{int(k): round(psnr(ema, v), 2) for k,v in va.items()} for va in valids], flush=True)
    ema.half().save_pretrained(a.out)
    print(json.dumps(dict(steps=step, minutes=round(spent/60,1), parameters=sum(p.numel() for p in ema.parameters()))))

if __name__=='__main__': main()
