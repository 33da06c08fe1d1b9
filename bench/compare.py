"Timing two ways of doing one thing, in turns, in one run"
import json, statistics, time

def seconds(f):
    "Wall seconds of one call"
    t = time.perf_counter(); f()
    return time.perf_counter()-t

def compare(
    bench, case, peer, # Names, see the table in each script
    unit,              # 's', or what is counted a second, such as 'latents/s'
    ours, theirs,      # What to time: called without arguments; or gives its own figure if `measured`
    count=1,           # Items that a call deals with, for a rate
    runs=5,            # Pairs; ours and theirs take turns, so that a busy moment meets both
    measured=False     # The calls give the figures themselves
):                     # One row: ours, theirs and their ratio, of medians; the spread is that of the pairs' ratios
    "Time `ours` and `theirs` in turns"
    def figure(f):
        if measured: return f()
        s = seconds(f)
        return s if unit=='s' else count/s
    pairs = [(figure(ours), figure(theirs)) for _ in range(runs+1)][1:]  # the first pair is warming up
    a, b = (statistics.median(p[i] for p in pairs) for i in (0,1))
    ratios = sorted(x/y for x,y in pairs)
    return dict(bench=bench, case=case, peer=peer, unit=unit, ours=a, theirs=b, ratio=a/b, runs=runs, spread=[ratios[0], ratios[-1]])

def plain_convolutions(net):
    "The same network with PyTorch's own convolutions"
    import torch
    from latentfast.winograd import Conv3x3
    for m in net.modules():
        if isinstance(m, Conv3x3): m.__class__ = torch.nn.Conv2d
    return net

def show(rows):
    "Print a table, a row as soon as it is there, and then each row as a line of JSON"
    print(f'{"case":22} {"peer":26} {"unit":12} {"ours":>12} {"theirs":>12} {"ratio":>8}   spread')
    done = []
    for r in rows:
        done.append(r)
        print(f'{r["case"]+" "+r.get("loss", ""):22} {r["peer"]:26} {r["unit"]:12} {r["ours"]:12,.4g} {r["theirs"]:12,.4g} {r["ratio"]:8.3f}   {r["spread"][0]:.3f} .. {r["spread"][1]:.3f}', flush=True)
    for r in done: print(json.dumps(r))
