import collections, sys
print(collections.Counter(l.strip() for l in open(sys.argv[1]) if l.startswith("  * ")))
