"""Class to image on photos: with stronger and stronger guidance, how often a judge sees the class that was asked for, and FID.

    python bench/class_to_image.py PHOTOS [--work FOLDER] [--epochs 20] [--guidance 1 1.5 2 3 5] [-n 2000] [--plot FILE.png] [--quick]

PHOTOS holds folders of classes, such as CIFAR-10's. The store and the judge, a classifier of pixels, are those of bench/quality.py, in the same --work.
A U-Net is told the class, and in a tenth of the training isn't; as many samples are drawn of each class as of any other.
accuracy (share): the judge's answer is the class that was asked for      fid: of the judge's features, of decoded samples and decoded held-out latents
  real            the same judge on decoded held-out latents               real   held-out latents against as many others
Everything is kept in --work: started again with the same arguments, it goes on where it was.
"""
import argparse, warnings
from pathlib import Path
import torch
from latentfast.all import *
from compare import show
from quality import BS, LR, SIZE, Bench

def train(bench, epochs):
    "The trained learner"
    learn = diffusion_learner(latent_dls(bench.store, bs=BS, seed=0, cond='class'), size=SIZE, seed=0)
    learn.add_cb(Checkpoint(bench.work/'runs'/f'class-{epochs}.pt', dict(size=SIZE, cond='class')))
    learn.fit_quietly(epochs, LR, label='class')
    return learn

def accuracy(judge, pictures, labels):
    "Share of pictures [N,3,H,W] that the judge names as they should be"
    with torch.inference_mode(): said = torch.cat([judge.net.head(judge.features(x)).argmax(1) for x in pictures.split(256)])
    return (said==labels).float().mean().item()

def run(photos, work='quality-work', epochs=20, guidance=(1.,1.5,2.,3.,5.), n=2000, steps=15, plot=None, quick=False):
    bench = Bench(photos, work, 1, quick=quick)
    if quick: epochs, n, guidance = 1, 60, guidance[:2]
    judge, classes = bench.judge(), bench.store.classes
    labels, rows, learn = torch.arange(n)%len(classes), [], None
    def real():
        z,y = bench.store.valid.__getitems__(range(min(n, len(bench.store.valid))))
        return dict(accuracy=accuracy(judge, LatentCodec.from_pretrained('tiny').decode(z), torch.as_tensor(y)))
    best = bench.once(f'class-real-{n}', real)
    for g in guidance:
        def measure():
            nonlocal learn
            learn = learn or train(bench, epochs)
            z = learn.sample_latents(n, cond=[classes[i] for i in labels], guidance_scale=g, steps=steps, seed=1, progress=False)
            x = learn.decode(z)
            grid_image(x[:100], ncol=10).save(bench.work/'runs'/f'class-{epochs}-{g:g}.png')
            s = evaluate(z, bench.store, n=n, features=judge, codec=learn.dls.codec)
            return dict(accuracy=accuracy(judge, x, labels), **{k: s[k] for k in ('fid','kid','floor_fid')})
        s = bench.once(f'class-{epochs}-{g:g}-{n}-{steps}', measure)
        for k,theirs in ('accuracy',best['accuracy']), ('fid',s['floor_fid']):
            rows.append(dict(bench='class_to_image', case=f'guidance_{g:g}_{k}', peer='real', unit=k, ours=s[k], theirs=theirs, ratio=s[k]/theirs, runs=1, spread=[s[k]/theirs]*2))
    if plot: draw(rows, guidance, plot)
    return rows

def draw(rows, guidance, file):
    "Accuracy and FID against guidance in one figure"
    import matplotlib; matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    fig,ax = plt.subplots(figsize=(5,3)); other = ax.twinx()
    for a,k,c in (ax,'accuracy','C0'), (other,'fid','C1'):
        of = [r for r in rows if r['unit']==k]
        a.plot(guidance, [r['ours'] for r in of], 'o-', c=c); a.axhline(of[0]['theirs'], c=c, ls=':', lw=1); a.set_ylabel(k, color=c)
    ax.set_xlabel('guidance scale (dotted: real pictures)')
    fig.savefig(file, dpi=120, bbox_inches='tight')

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('photos'); p.add_argument('--work', default='quality-work'); p.add_argument('--epochs', type=int, default=20)
    p.add_argument('--guidance', type=float, nargs='+', default=[1.,1.5,2.,3.,5.]); p.add_argument('-n', type=int, default=2000); p.add_argument('--steps', type=int, default=15)
    p.add_argument('--plot', type=Path, help='write accuracy and FID against guidance to this file'); p.add_argument('--quick', action='store_true')
    warnings.filterwarnings('ignore')
    show(run(**vars(p.parse_args())))
