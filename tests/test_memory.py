import platform, subprocess, sys
import pytest

CODE = '''
import resource, torch
from latentfast.autoencoder import keep_memory
def faults(n=4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(n): torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt-before
def resident(): return int(open('/proc/self/statm').read().split()[1])*resource.getpagesize()/2**20
outside = faults()
try:
    with keep_memory():
        faults(20)
        with keep_memory(): pass
        inside, many = faults(), [torch.ones(2**24) for _ in range(4)]
        del many; held = resident()
        raise KeyboardInterrupt
except KeyboardInterrupt: pass
print(outside, inside, held, resident())
'''

@pytest.mark.skipif(platform.libc_ver()[0]!='glibc', reason="it is glibc's malloc that is asked")
def test_memory_stays_within_and_is_given_back_afterwards():
    p = subprocess.run([sys.executable, '-c', CODE], check=True, capture_output=True, text=True)
    outside, inside, held, after = map(float, p.stdout.split())
    assert outside>1000 and inside<.5*outside, p.stdout
    assert after<held-150, p.stdout
