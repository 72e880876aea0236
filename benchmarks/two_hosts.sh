#!/bin/sh
# Two hosts on one machine: network namespaces joined by a cable, and README's torchrun line between
# them on the digits. Needs root and iproute2; PYTHON=… picks another Python.
#
#     benchmarks/two_hosts.sh OUT [options of `fastcl run`]
set -eu
out=$1
shift
tag=fastcl$$
clean() {
    for host in 1 2; do
        ip netns pids $tag-$host | xargs -r kill 2>/dev/null || true
        ip netns delete $tag-$host
        rm -r /etc/netns/$tag-$host
    done
}
for host in 1 2; do ip netns add $tag-$host; done
trap clean EXIT
trap "exit 130" INT TERM
ip link add one netns $tag-1 type veth peer name two netns $tag-2
ip -n $tag-1 address add 10.77.0.1/24 dev one
ip -n $tag-2 address add 10.77.0.2/24 dev two
ip -n $tag-1 link set one up
ip -n $tag-2 link set two up
ip -n $tag-1 route add default dev one
ip -n $tag-2 route add default dev two
for host in 1 2; do
    ip -n $tag-$host link set lo up
    # As on Debian: a host's own name leads to its loopback.
    mkdir -p /etc/netns/$tag-$host
    printf '127.0.0.1 localhost\n127.0.1.1 host%s\n10.77.0.%s host%s\n' \
        $host $((3 - host)) $((3 - host)) >/etc/netns/$tag-$host/hosts
done

on() {
    host=$1
    shift
    ip netns exec $tag-"$host" unshare --uts sh -c "hostname host$host; exec \"\$@\"" sh \
        "${PYTHON:-python}" -m torch.distributed.run --nnodes 2 --nproc-per-node 1 \
        --rdzv-backend c10d --rdzv-endpoint host1:29500 -m fastcl_cli run "$@"
}
on 2 quickstart --out "$out" "$@" &
on 1 quickstart --out "$out" "$@"
wait $!
