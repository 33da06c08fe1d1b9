"""How fast photos become latents, against the loop that people write with diffusers.

    python bench/encode.py [--quick] [--photos FOLDER]

sd_vae_256 (pictures/s): an autoencoder of Stable Diffusion's size (83.7 M parameters, random weights: speed doesn't depend on them), 256x256.
  diffusers_loop     float32, PIL, one DataLoader, vae.encode(batch).latent_dist.mean, torch.save at the end
cpu_seconds (s): all that `encode` takes, against decoding the pictures and running the codec, measured apart. The same with the small codec
  decode_plus_codec  `tiny` at 64x64, where there is the least to hide behind
tiny_encode_256, tiny_decode_256 (pictures/s): the bundled `tiny`, 2.8 M parameters, in the number format that the device is fast with
  sd_sized           the autoencoder of Stable Diffusion's size in the same format
Without --photos, rendered scenes are saved as JPEGs of 400x400.
"""
import argparse, tempfile, time, warnings
from pathlib import Path
import torch
from compare import compare, show

def sd_sized():
    "An AutoencoderKL as Stable Diffusion's, untrained"
    from diffusers import AutoencoderKL
    torch.manual_seed(0)
    return AutoencoderKL(down_block_types=('DownEncoderBlock2D',)*4, up_block_types=('UpDecoderBlock2D',)*4, block_out_channels=(128,256,512,512),
                         layers_per_block=2, latent_channels=4, norm_num_groups=32, sample_size=256).eval().requires_grad_(False)

def jpegs(folder, n, size=400):
    from PIL import Image
    from latentfast.scenes import random_scene, render_scene
    folder.mkdir()
    for i in range(n): Image.fromarray(render_scene(random_scene(i), size)).save(folder/f'{i:05d}.jpg', quality=92)
    return folder

class Folder(torch.utils.data.Dataset):
    "What the plain loop reads: PIL and torchvision's transforms"
    def __init__(self, files, size):
        from torchvision import transforms as T
        self.files = files
        self.tfm = T.Compose([T.Resize(size, T.InterpolationMode.LANCZOS), T.CenterCrop(size), T.ToTensor(), T.Normalize([.5]*3, [.5]*3)])
    def __len__(self): return len(self.files)
    def __getitem__(self, i):
        from PIL import Image
        return self.tfm(Image.open(self.files[i]).convert('RGB'))

def files_of(src, n):
    from latentfast.sources import find_pictures
    ps = find_pictures(src, valid_pct=0)
    return [ps.open(i) for i in range(min(n, len(ps)))]

def run(quick=False, photos=None):
    from latentfast.autoencoder import LatentCodec, fast_dtype
    from latentfast.encode import encode, _encode_batch
    from latentfast.sources import load_picture
    n, n_small, bs, runs = (8, 128, 8, 1) if quick else (16, 500, 8, 3)
    with tempfile.TemporaryDirectory() as tmp:
        tmp, count = Path(tmp), iter(range(10**6))
        src = tmp/'photos'
        if photos:
            src.mkdir()
            for f in files_of(photos, n_small): (src/Path(f).name).symlink_to(Path(f).absolute())
        else: jpegs(src, n_small)
        few = tmp/'few'; few.mkdir()
        for f in sorted(src.iterdir())[:n]: (few/f.name).symlink_to(f.resolve())
        fresh = lambda: tmp/f'store{next(count)}'

        vae = sd_sized(); codec = LatentCodec(vae, 'sd-sized')
        ours = lambda: encode(few, fresh(), codec, size=256, batch_size=bs, progress=False)
        def loop():
            vae.to(memory_format=torch.contiguous_format)
            with torch.no_grad():
                dl = torch.utils.data.DataLoader(Folder(sorted(few.iterdir()), 256), batch_size=bs, num_workers=2)
                torch.save(torch.cat([vae.encode(b).latent_dist.mean for b in dl]), tmp/'latents.pt')
        yield compare('encode', 'sd_vae_256', 'diffusers_loop', 'pictures/s', ours, loop, count=n, runs=runs)

        def cpu(f):
            t = time.process_time(); f()
            return time.process_time()-t
        def apart(folder, codec, size, bs):
            files, dtype = sorted(folder.iterdir()), fast_dtype('cpu')
            def f():
                arrays = [load_picture(p, size) for p in files]
                for i in range(0, len(arrays), bs): _encode_batch(codec, arrays[i:i+bs], dtype)
            return f
        tiny = LatentCodec.from_pretrained('tiny')
        small = lambda: encode(src, fresh(), tiny, size=64, progress=False)
        yield compare('encode', 'cpu_seconds', 'decode_plus_codec', 's', lambda: cpu(ours), lambda: cpu(apart(few, codec, 256, bs)), runs=runs, measured=True)
        yield compare('encode', 'cpu_seconds_tiny_64', 'decode_plus_codec', 's', lambda: cpu(small), lambda: cpu(apart(src, tiny, 64, 64)), runs=runs, measured=True)
        yield compare('encode', 'wall_tiny_64', 'decode_plus_codec', 's', small, apart(src, tiny, 64, 64), runs=runs)

        x, z = torch.rand(bs,3,256,256)*2-1, torch.randn(bs,4,32,32)
        for case,name,arg in (('tiny_encode_256','encode',x), ('tiny_decode_256','decode',z)):
            def run_of(codec):
                def f():
                    with torch.autocast('cpu', fast_dtype('cpu'), enabled=fast_dtype('cpu')!=torch.float32): getattr(codec, name)(arg)
                return f
            yield compare('encode', case, 'sd_sized', 'pictures/s', run_of(tiny), run_of(codec), count=bs, runs=runs)

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--quick', action='store_true', help='fewer pictures, one run')
    p.add_argument('--photos', help='a folder of real photos')
    a = p.parse_args()
    warnings.filterwarnings('ignore', message='.*PIL.*')
    show(run(a.quick, a.photos))
