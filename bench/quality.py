"""Does a loss on features give better pictures than MSE alone? The same network and data, and for each loss the same training time.

    python bench/quality.py PHOTOS [--minutes 20] [--seeds 3] [--arms ARM ...] [--work FOLDER] [--quick]
    python bench/quality.py PHOTOS --choose --minutes 10          # one seed, against training photos, to choose weights and gates by
    python bench/quality.py PHOTOS --case time_to_fid --minutes 60

PHOTOS holds folders of classes, such as CIFAR-10's; they are encoded at 64x64, so latents are 4x8x8. An arm is a loss, with =WEIGHT for
another weight than its own and >SNR for another gate, such as 'layers=.2>4':
  mse        MSE alone                                   pooled    the classifier's pooled activations (the article's loss)
  brief      pooled, of a small classifier of one epoch  noised    pooled, of a classifier trained on lightly noised latents
  layers     the classifier's maps, channel-normalised   ensemble  the same under random transforms (E-LatentLPIPS)
  decoder    the autoencoder's decoder's maps (LPL)      self      an MSE-trained U-Net's middle (self-perceptual)
  align      the U-Net's middle against the classifier's last map (REPA)
cifar10_8x8 (FID, KID): each arm against mse_only, on the features of a pixel classifier that no loss knows, of decoded samples and decoded
  held-out latents; and on the latent classifier's own. Training time is the same: each arm's step is timed on the side, all arms in turns,
  and it gets as many epochs as fit (mse rounded up, the others down).
time_to_fid (s): training time until the first of --arms has the FID that the course's way has after --minutes (course_baseline: eps,
  float32, MSE, torch's AdamW, uniform times, no average of weights). It's trained anew for longer and longer until it is as good.
Everything is kept in --work: the same command goes on where it stopped, and adds arms and seeds to what is there.
"""
import argparse, json, re, statistics, time, warnings
from functools import partial
from pathlib import Path
import numpy as np, torch
from fastai.callback.core import Callback, CancelFitException
from fastai.optimizer import OptimWrapper
from latentfast.all import *
from compare import show

WEIGHTS = dict(mse=0., course=0., pooled=1., brief=1., noised=1., layers=.5, ensemble=.5, decoder=.1, self=.1, align=.5)
LR, BS, SIZE, STEPS = 2e-3, 64, 'tiny', 50

class Noised(Callback):
    "Lightly noised latents for a classifier's training: an SNR of 1 at the least"
    run_valid = False
    def before_batch(self):
        x = self.xb[0]; s = torch.rand(len(x),1,1,1)*.5**.5
        self.learn.xb = ((1-s**2).sqrt()*x + s*torch.randn_like(x),)

def parse(arm):
    m = re.fullmatch(r'([a-z]+)(?:=([\d.]+))?(?:>([\d.]+))?', arm)
    if not m or m[1] not in WEIGHTS: raise SystemExit(f'{arm}: an arm is one of {", ".join(WEIGHTS)}, with =WEIGHT and >SNR if you like.')
    return m[1], float(m[2] or WEIGHTS[m[1]]), None if m[3] is None else float(m[3])

def plain(name): return re.sub(r'[^\w.-]', '_', name)

class Bench:
    def __init__(self, photos, work, minutes, choose=False, quick=False):
        self.work, self.minutes, self.choose, self.quick = Path(work), minutes, choose, quick
        self.work.mkdir(parents=True, exist_ok=True)
        self.n, self.photos = 60 if quick else 2500 if choose else 5000, photos
        self.store = encode(photos, self.work/'store', size=64, progress=False)

    def once(self, name, make):
        "What `make` gives, as json; kept, and made only once"
        f = self.work/f'{name}.json'
        if not f.exists(): f.write_text(json.dumps(make()))
        return json.loads(f.read_text())

    def net(self, name, learn, epochs, lr):
        "A classifier: trained once, then loaded"
        folder = self.work/name
        if not (folder/'config.json').exists():
            learn = learn(); learn.add_cb(Checkpoint(self.work/f'{name}.pt'))
            learn.fit_quietly(1 if self.quick else epochs, lr, label=name)
            print(f'{name}: accuracy {learn.recorder.values[-1][2]:.3f}', flush=True)
            learn.model.save_pretrained(folder)
        return LatentClassifier.from_pretrained(folder)
    def classifier(self, name='classifier'):
        dls = latent_dls(self.store, bs=64, seed=10)
        kw, epochs = dict(classifier=({}, 10), brief=(dict(nfs=(16,32,64,128,256)), 1), noised=(dict(cbs=[Noised()]), 10))[name]
        return self.net(name, lambda: classifier_learner(dls, **{**(dict(arch='tiny') if 'nfs' not in kw else {}), 'seed': 10, **kw}), epochs, 1e-2)
    def judge(self): return feature_net(self.net('judge', lambda: pixel_learner(self.store, n=200 if self.quick else 45_000, seed=110), 6, 3e-3))

    def losses(self, arm):
        name, w, gate = parse(arm)
        kw = dict(weight=w, **{} if gate is None else dict(min_snr=gate))
        if name=='mse': return None
        if name in ('pooled','brief','noised'): return PerceptualLoss(self.classifier('classifier' if name=='pooled' else name), **kw)
        if name=='layers': return PerceptualLoss(self.classifier(), [-3,-2,-1], **kw)
        if name=='ensemble': return PerceptualLoss(self.classifier(), [-3,-2,-1], augment=latent_ensemble, **kw)
        if name=='decoder': return PerceptualLoss(DecoderFeatures(LatentCodec.from_pretrained('tiny'), self.store.normalizer), [0,1], norm='target', **kw)
        if name=='self': return PerceptualLoss(UNetFeatures(self.train('mse', 999).ema_model), [0], norm='mse', **kw)
        return Alignment(self.classifier(), **kw)

    def learner(self, arm, seed):
        kw = dict(perceptual=self.losses(arm)) if arm!='course' else dict(objective='eps', precision=None, ema=None, clip=None, t_sampling='uniform',
                                                                          opt_func=partial(OptimWrapper, opt=torch.optim.AdamW))
        return diffusion_learner(latent_dls(self.store, bs=BS, seed=seed, index=arm!='course'), size=SIZE, seed=seed, **kw)

    def step_seconds(self, arms, rounds=5, n=20):
        "Seconds of a training step of each arm, timed in turns"
        class Timed(Callback):
            order, run_valid = 100, False
            def before_batch(self): self.at = time.perf_counter()
            def after_batch(self):
                times.append(time.perf_counter()-self.at)
                if len(times)>=n: raise CancelFitException
        def measure():
            out, learners = {a: [] for a in arms}, {a: self.learner(a, 0) for a in arms}
            for r in range(1+rounds):
                for a in arms:
                    times.clear()
                    with learners[a].no_bar(), learners[a].no_logging(): learners[a].fit(1, 1e-5, cbs=Timed())
                    if r: out[a].append(statistics.median(times))
            return {a: statistics.median(v) for a,v in out.items()}
        times = []
        return self.once('steps-'+'-'.join(sorted(map(plain, arms))), measure)

    def epochs(self, arms):
        "Seconds a step, and epochs that fit into the time"
        secs, per = self.step_seconds(arms), len(latent_dls(self.store, bs=BS).train)
        fit = {a: self.minutes*60/(secs[a]*per) for a in arms}
        return secs, {a: 2 if self.quick else max(1, int(-(-n//1)) if a in ('mse','course') else int(n)) for a,n in fit.items()}, per

    def train(self, arm, seed, epochs=8):
        learn, name = self.learner(arm, seed), plain(f'{arm}-{seed}-{epochs}')
        learn.add_cb(Checkpoint(self.work/'runs'/f'{name}.pt', dict(arm=arm, seed=seed)))
        learn.fit_quietly(2 if self.quick else epochs, LR, label=name)
        return learn

    def score(self, arm, seed, epochs):
        name = plain(f'{arm}-{seed}-{epochs}')
        def measure():
            learn = self.train(arm, seed, epochs)
            z = learn.sample_latents(self.n, steps=STEPS, seed=seed+1, progress=False)
            grid_image(learn.decode(z[:64]), ncol=8).save(self.work/'runs'/f'{name}.png')
            kw = dict(n=self.n, codec=learn.dls.codec)
            both = (evaluate(z, self.store, features=self.judge(), **(dict(against='train', pictures=self.photos) if self.choose else {}), **kw),
                    evaluate(z, self.store, features=self.classifier(), against='train' if self.choose else 'valid', **kw))
            return [{k: v for k,v in s.items() if isinstance(v, (int,float,str,dict))} for s in both]
        return self.once(f'scores-{"choose-"*self.choose}{self.n}-{name}', measure)

    def compare(self, arms, seeds):
        arms = ['mse']+[a for a in arms if a!='mse']
        secs, epochs, per = self.epochs(arms)
        scores = {}
        for seed in range(1000, 1001) if self.choose else range(seeds):
            for a in arms:
                scores.setdefault(a, []).append(self.score(a, seed, epochs[a]))
                self.table(arms, scores, secs, epochs, per)
        figure = lambda a, k: [s[0][k] for s in scores[a]]
        out = []
        for a in arms[1:]:
            for k in 'fid','kid':
                ours, theirs = figure(a, k), figure('mse', k)
                ratios = sorted(x/y for x,y in zip(ours, theirs))
                out.append(dict(bench='quality', case='cifar10_8x8', peer='mse_only', unit=k.upper(), loss=a, ours=statistics.mean(ours), theirs=statistics.mean(theirs),
                                ratio=statistics.mean(ours)/statistics.mean(theirs), runs=len(ours), spread=[ratios[0], ratios[-1]]))
        return out

    def time_to_fid(self, arm):
        secs, epochs, per = self.epochs(['course', arm])
        goal = self.score('course', 0, epochs['course'])[0]['fid']
        time_of = lambda a, n: n*per*secs[a]
        points, share = [], 1/12
        while not points or points[-1][1]>goal and share<1:
            n = max(1, round(epochs[arm]*share)); share *= 1.5
            points.append((time_of(arm, n), self.score(arm, 0, n)[0]['fid']))
            print(f'{arm}: FID {points[-1][1]:.2f} after {points[-1][0]/60:.1f} minutes; the course\'s way has {goal:.2f} after {time_of("course", epochs["course"])/60:.1f}', flush=True)
        if points[-1][1]>goal: raise SystemExit(f'{arm} does not get to a FID of {goal:.2f} in this time.')
        ours = points[-1][0] if len(points)==1 else float(np.interp(-goal, [-f for _,f in points[-2:]], [t for t,_ in points[-2:]]))
        theirs = time_of('course', epochs['course'])
        return [dict(bench='quality', case='time_to_fid', peer='course_baseline', unit='s', ours=ours, theirs=theirs, ratio=ours/theirs, runs=1, spread=[ours/theirs]*2)]

    def table(self, arms, scores, secs, epochs, per):
        pm = lambda v, d: f'{statistics.mean(v):.{d}f} ± {statistics.stdev(v):.{d}f}' if len(v)>1 else f'{v[0]:.{d}f}'
        print(f'\n{"loss":14} {"ms/step":>8} {"epochs":>6} {"min":>6}   {"FID judge":15} {"KID judge x1000":16} {"FID classifier":15} {"std of latents":28} contrast')
        for a in arms:
            if a not in scores: continue
            j, c = zip(*scores[a])
            std = np.mean([s['latents']['std'] for s in j], 0)
            print(f'{a:14} {secs[a]*1e3:8.1f} {epochs[a]:6} {epochs[a]*per*secs[a]/60:6.1f}   {pm([s["fid"] for s in j], 2):15} {pm([1e3*s["kid"] for s in j], 2):16} '
                  f'{pm([s["fid"] for s in c], 2):15} {" ".join(f"{v:.2f}" for v in std):28} {np.mean([s["pictures"]["contrast"] for s in j]):.3f} (real {j[0]["real_pictures"]["contrast"]:.3f})', flush=True)
        s = next(iter(scores.values()))[0]
        print(f'floor: FID {s[0]["floor_fid"]:.2f} (judge), {s[1]["floor_fid"]:.2f} (classifier); {s[0]["n"]} samples', flush=True)

def run(photos, work='quality-work', minutes=20, seeds=3, arms=('mse','pooled','layers','align'), choose=False, quick=False, case='cifar10_8x8'):
    bench = Bench(photos, work, minutes, choose, quick)
    return bench.time_to_fid(arms[0]) if case=='time_to_fid' else bench.compare(arms, seeds)

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('photos'); p.add_argument('--work', default='quality-work'); p.add_argument('--minutes', type=float, default=20)
    p.add_argument('--case', default='cifar10_8x8', choices=['cifar10_8x8','time_to_fid'])
    p.add_argument('--seeds', type=int, default=3); p.add_argument('--arms', nargs='+', default=[a for a in WEIGHTS if a!='course'])
    p.add_argument('--choose', action='store_true', help='seed 1000, scores against training photos'); p.add_argument('--quick', action='store_true')
    a = p.parse_args()
    warnings.filterwarnings('ignore')
    show(run(**vars(a)))
