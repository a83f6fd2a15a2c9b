import sys

from simulations.bench_grpc import ours

if __name__ == "__main__":
    for n in map(int, sys.argv[1].split(',')):
        for r in ours.rows(n, [int(x) for x in sys.argv[2].split(',')]):
            print({k: (round(v,3) if isinstance(v,float) else v) for k,v in r.items()}, flush=True)
