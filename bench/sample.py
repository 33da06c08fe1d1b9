"""What sampling costs beside the network itself, and how few network calls do.

    python bench/sample.py [overhead|calls_to_ddim100] [--quick]
    python bench/sample.py calls_to_ddim100 --model MODEL --store STORE [--features CLF ...] [-n 5000] [--plot FILE.png]

overhead (s): `sample` with 20 steps of ddim and one decode, batch 64, U-Net small, 8x8 latents; also with unipc, and guided by two answers a step
  bare_forward   as many bare network calls in the same number format, and the decode
calls_to_ddim100 (network calls): FID against the store's held-out latents for each sampler and number of calls, all from the same noise. A row
says with how many a sampler's FID is within 2 % of that of 100 DDIM steps, and stays there with more. MODEL, STORE and CLF may be what bench/quality.py
leaves of CIFAR-10 in its folder: runs/mse-0-..., store, judge and classifier. Without a model it's one of rendered scenes that is trained for some seconds
and shows only that the script works
  ddim100        100
"""
import argparse, json, tempfile
from pathlib import Path
from compare import compare, show
import torch

def unet_and_codec():
    "A `small` U-Net with answers that aren't 0, and the bundled autoencoder"
    from latentfast.autoencoder import LatentCodec
    from latentfast.unet import LatentUNet
    torch.manual_seed(0)
    unet = LatentUNet.from_size('small', sample_size=8).eval().requires_grad_(False).to(memory_format=torch.channels_last)
    for p in unet.parameters(): p.add_(.02*torch.randn_like(p))
    return unet, LatentCodec.from_pretrained('tiny')

class Conditional(torch.nn.Module):
    "The same network with a condition that it takes no notice of, so that guidance can be timed"
    def __init__(self, unet): super().__init__(); self.unet,self.config = unet,unet.config
    def forward(self, x, t, cond): return self.unet(x, t)

def overhead(quick=False):
    from latentfast.autoencoder import fast_dtype
    from latentfast.sampling import sample
    (unet, codec), steps, runs, bs, dtype = unet_and_codec(), 6 if quick else 20, 3 if quick else 7, 64, fast_dtype()
    def bare(calls, bs=bs, out=64):
        x, t = torch.randn(bs,4,8,8), torch.full((bs,), 500)
        def f():
            with torch.no_grad(), torch.autocast('cpu', dtype, enabled=dtype!=torch.float32):
                for _ in range(calls): y = unet(x, t).sample
            codec.decode(y[:out].float())
        return f
    def ours(model=unet, sampler='ddim', **kw): return lambda: codec.decode(sample(model, bs, steps=steps, sampler=sampler, seed=0, progress=False, **kw))
    rows = [compare('sample', 'overhead', 'bare_forward', 's', ours(), bare(steps), runs=runs)]
    rows.append(compare('sample', 'overhead_unipc', 'bare_forward', 's', ours(sampler='unipc'), bare(steps), runs=runs))
    guided = ours(Conditional(unet), cond=1, uncond=0, guidance_scale=2.)
    rows.append(compare('sample', 'overhead_guided', 'bare_forward_2B', 's', guided, bare(steps, 2*bs), runs=max(3, runs//2)))
    return rows

SAMPLERS = 'ddim','euler','heun','dpm++','unipc','deis'
CALLS = 5,8,10,12,15,20,30

def saved(model, store, nets=(None,)):
    "A saved model, its store, and what FIDs are to be of"
    from latentfast.evaluation import feature_net
    from latentfast.pipeline import LatentDiffusionPipeline
    from latentfast.store import LatentStore
    store, pipe = LatentStore(store), LatentDiffusionPipeline.from_pretrained(model)
    store.check_codec(pipe.codec)
    def draw(n, **kw): return store.normalizer.normalize(pipe.normalizer.denormalize(pipe.sample_latents(n, **kw)))
    return draw, store, pipe.codec, [feature_net(o) for o in nets]

def trained(folder):
    "A model of rendered scenes trained for some seconds, its store, and plain latents as features"
    from latentfast.data import latent_dls
    from latentfast.encode import encode
    from latentfast.evaluation import feature_net
    from latentfast.scenes import make_scenes
    from latentfast.training import diffusion_learner
    from latentfast.unet import LatentUNet
    store = encode(make_scenes(Path(folder)/'pictures', 160, size=64, workers=0, progress=False), Path(folder)/'store', size=64, progress=False)
    learn = diffusion_learner(latent_dls(store, bs=16), LatentUNet(nfs=(32,64), attn_levels=(), sample_size=8), seed=0)
    learn.fit_quietly(4, 2e-3, progress=False)
    return learn.sample_latents, store, learn.dls.codec, [feature_net()]

def calls_to_ddim100(draw, store, codec, nets, n=5000, samplers=SAMPLERS, calls=CALLS, seed=0, plot=None, model=None):
    "FID of each sampler with so many network calls, and where it comes to within 2 % of DDIM-100"
    from latentfast.evaluation import PictureFeatures, features, features_id, fid
    def look(z):
        pictures = lambda: (codec.decode(store.normalizer.denormalize(b)).cpu() for b in z.split(64))
        return [features(net, pictures() if isinstance(net, PictureFeatures) else z) for net in nets]
    held = store.valid if len(store.valid)>=n//4 else store.train
    real = look(store.normalizer.normalize(held.__getitems__(range(min(len(held), n)))[0]))
    def sampled(sampler, k):
        return look(draw(n, steps=(k+1)//2 if sampler=='heun' else k, sampler=sampler, seed=seed, batch_size=256, progress=False))
    base = sampled('ddim', 100)
    def against_base(f, b, r):
        "FID, its ratio to DDIM-100's, and the ratio's standard error, by leaving out every tenth of the seeds in turn"
        part = [torch.arange(n)%10!=g for g in range(10)]
        ratios = torch.tensor([fid(f[p], r)/fid(b[p], r) for p in part])
        return fid(f, r), fid(f, r)/fid(b, r), (.9*(ratios-ratios.mean()).square().sum()).sqrt().item()
    print(f'{n} samples, seed {seed}, against {len(real[0])} real ones. FID, and in % of that of DDIM with 100 steps', flush=True)
    table = {s: {} for s in samplers}
    for s in samplers:
        for k in calls:
            table[s][k] = [against_base(*o) for o in zip(sampled(s, k), base, real)]
            print(f'{s:>10} {k:4}  ', *[f'{f:8.4g} {100*q:7.1f} ± {100*se:.1f}' for f,q,se in table[s][k]], flush=True)
    rows, ids = [], [features_id(net) for net in nets]
    for i,(name,h) in enumerate(ids):
        about, found = dict(model=model, features=name, features_hash=h, n=n, fid_ddim100=fid(base[i], real[i])), []
        print(f'{name}: FID of DDIM-100 is {about["fid_ddim100"]:.4g}')
        for s in samplers:
            good = [k for k in calls if all(table[s][j][i][1]<=1.02 for j in calls if j>=k)]
            if good: found.append(dict(bench='sample', case=f'calls_to_ddim100/{s}', peer='ddim100', unit='calls', ours=good[0], theirs=100, ratio=good[0]/100,
                                       runs=1, spread=[good[0]/100]*2, fid=table[s][good[0]][i][0], **about))
        if found: rows += [*found, {**min(found, key=lambda r: r['ours']), 'case': 'calls_to_ddim100'}]
        else: print('No sampler came to within 2 % of DDIM-100 with these numbers of calls.')
        print(json.dumps(dict(bench='sample', case='fid_by_calls', **about, fids={s: {k: v[i][0] for k,v in row.items()} for s,row in table.items()})))
    if plot: draw_plot(plot, table, ids, [fid(*o) for o in zip(base, real)])
    return rows

def draw_plot(path, table, ids, base):
    "FID against network calls, a panel for each kind of features"
    import matplotlib; matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    fig, axs = plt.subplots(1, len(ids), figsize=(5.5*len(ids),4), squeeze=False)
    for i,(ax,(name,_)) in enumerate(zip(axs[0], ids)):
        for s,row in table.items(): ax.plot(list(row), [v[i][0] for v in row.values()], 'o-', ms=3, label=s)
        ax.axhline(base[i], c='.6', lw=.8, ls=':', label='ddim, 100 calls'); ax.legend(fontsize=7)
        ax.set(xscale='log', yscale='log', xlabel='network calls', ylabel='FID', title=f'features: {name}')
        ax.set_xticks(calls := list(next(iter(table.values()))), calls); ax.minorticks_off()
        ax.yaxis.set_major_formatter('{x:g}')
    fig.savefig(path, dpi=120, bbox_inches='tight')

def run(quick=False, case=None, model=None, store=None, features=(None,), **kw):
    rows = overhead(quick) if case in (None,'overhead') else []
    if case=='overhead': return rows
    with tempfile.TemporaryDirectory() as tmp:
        if model: what, name = saved(model, store, features), str(model)
        else: what, name, kw = trained(tmp), 'trained for some seconds', {**kw, 'n': 200}
        if quick: kw.update(n=min(kw.get('n', 200), 200), samplers=('ddim','unipc'), calls=(5,10,20))
        return rows + calls_to_ddim100(*what, model=name, **kw)

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('case', nargs='?', choices=['overhead','calls_to_ddim100'], help='one of the two; both if not given')
    p.add_argument('--quick', action='store_true', help='fewer steps, runs and samples, and a model trained for some seconds; under a minute')
    p.add_argument('--model', help='a saved model, for calls_to_ddim100'); p.add_argument('--store', help='the store that it was trained on')
    p.add_argument('--features', nargs='+', default=[None], help="what FID of --model's samples is of: classifiers' folders, timm:NAME or inception; the latents, averaged to 8x8, if not given")
    p.add_argument('-n', type=int, default=5000, help='samples for each FID'); p.add_argument('--seed', type=int, default=0)
    p.add_argument('--samplers', nargs='+', default=SAMPLERS, metavar='S'); p.add_argument('--calls', nargs='+', type=int, default=CALLS, metavar='N')
    p.add_argument('--plot', help='write FID against network calls to this file')
    a = p.parse_args()
    if bool(a.model)!=bool(a.store): p.error('--model and --store go together')
    show(run(**vars(a)))
