"""What sampling costs beside the network itself, and how few network calls do.

    python bench/sample.py [--quick]
    python bench/sample.py --model MODEL --store STORE [--features CLF] [-n 5000] [--plot FILE.png]

overhead (s): `sample` with ddim and one decode, batch 64, U-Net small, 8x8 latents; also with dpm++, and guided by two answers a step
  bare_forward   as many bare network calls in the same number format, and the decode
calls_to_ddim100 (network calls), for a trained model: FID against the store's held-out latents for each sampler and number of calls. A row
says with how many a sampler's FID is within 2 % of that of 100 DDIM steps, the same seed and number of samples
  ddim100        100
"""
import argparse, json
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
    def ours(model=unet, **kw): return lambda: codec.decode(sample(model, bs, steps=steps, seed=0, progress=False, **kw))
    rows = [compare('sample', 'overhead', 'bare_forward', 's', ours(), bare(steps), runs=runs)]
    rows.append(compare('sample', 'overhead_dpm++', 'bare_forward', 's', ours(sampler='dpm++'), bare(steps), runs=runs))
    guided = ours(Conditional(unet), cond=1, uncond=0, guidance_scale=2.)
    rows.append(compare('sample', 'overhead_guided', 'bare_forward_2B', 's', guided, bare(steps, 2*bs), runs=max(3, runs//2)))
    return rows

SAMPLERS = 'ddim','euler','heun','dpm++','dpm++sde','unipc','deis'
CALLS = 5,8,10,12,15,20,30,50

def calls_to_ddim100(model, store, clf=None, n=5000, samplers=SAMPLERS, calls=CALLS, seed=0, plot=None):
    "FID of each sampler with so many network calls, and where it comes to within 2 % of DDIM-100"
    from latentfast.classifier import LatentClassifier
    from latentfast.evaluation import features, fid, latents_8x8
    from latentfast.pipeline import LatentDiffusionPipeline
    from latentfast.store import LatentStore
    store, pipe = LatentStore(store), LatentDiffusionPipeline.from_pretrained(model)
    store.check_codec(pipe.codec)
    net = LatentClassifier.from_pretrained(clf).eval() if clf else latents_8x8
    if clf: net.check_store(store)
    held = store.valid if len(store.valid)>=n//4 else store.train
    real = features(net, store.normalizer.normalize(held.__getitems__(range(len(held)))[0]))
    def score(sampler, k):
        steps = (k+1)//2 if sampler=='heun' else k
        z = pipe.sample_latents(n, steps=steps, sampler=sampler, seed=seed, batch_size=256, progress=False)
        return fid(features(net, store.normalizer.normalize(pipe.normalizer.denormalize(z))), real)
    base = score('ddim', 100)
    print(f'{n} samples; FID of DDIM with 100 steps: {base:.4g}\n{"calls":>10}', *[f'{k:>8}' for k in calls], flush=True)
    table = {}
    for s in samplers:
        table[s] = {k: score(s, k) for k in calls}
        print(f'{s:>10}', *[f'{v:8.4g}' for v in table[s].values()], flush=True)
    if plot:
        import matplotlib; matplotlib.use('Agg')
        import matplotlib.pyplot as plt
        fig, ax = plt.subplots(figsize=(6,4))
        for s,row in table.items(): ax.plot(list(row), list(row.values()), 'o-', ms=3, label=s)
        ax.axhline(base, c='.6', lw=.8, ls=':'); ax.legend(fontsize=7)
        ax.set(xscale='log', yscale='log', xlabel='network calls', ylabel='FID')
        fig.savefig(plot, dpi=120, bbox_inches='tight')
    rows, fids = [], {s: {str(k): v for k,v in row.items()} for s,row in table.items()}
    for s,row in table.items():
        good = [k for k in calls if all(row[j]<=1.02*base for j in calls if j>=k)]
        if good: rows.append(dict(bench='sample', case=f'calls_to_ddim100/{s}', peer='ddim100', unit='calls', ours=good[0], theirs=100,
                                  ratio=good[0]/100, runs=1, spread=[good[0]/100]*2, fid=row[good[0]], fid_ddim100=base, n=n))
    if not rows: print('No sampler came to within 2 % of DDIM-100 with these numbers of calls.')
    else: rows.append({**min(rows, key=lambda r: r['ours']), 'case': 'calls_to_ddim100'})
    print(json.dumps(dict(bench='sample', case='fid_by_calls', fid_ddim100=base, n=n, fids=fids)))
    return rows

def run(quick=False, model=None, store=None, **kw): return calls_to_ddim100(model, store, **kw) if model else overhead(quick)

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--quick', action='store_true', help='fewer steps and runs; under a minute. With --model: 500 samples, three samplers')
    p.add_argument('--model', help='a trained model, for calls_to_ddim100')
    p.add_argument('--store', help='the store that it was trained on')
    p.add_argument('--features', help="a latent classifier whose features FID is of; without one the latents themselves, averaged to 8x8")
    p.add_argument('-n', type=int, default=5000, help='samples for each FID'); p.add_argument('--seed', type=int, default=0)
    p.add_argument('--plot', help='write FID against network calls to this file')
    a = p.parse_args()
    if bool(a.model)!=bool(a.store): p.error('--model and --store go together')
    kw = dict(clf=a.features, n=a.n, seed=a.seed, plot=a.plot) if a.model else {}
    if a.model and a.quick: kw.update(n=min(a.n, 500), samplers=('ddim','dpm++','unipc'), calls=(5,10,20))
    show(run(a.quick, a.model, a.store, **kw))
