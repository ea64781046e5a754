#!/usr/bin/env bash
# Ranks over MPI, by each MPI that is here: on this machine, and on two machines that are network namespaces of it.
#
#     tools/check-mpi.sh [TEST ...]
#
# As root it installs Debian's Open MPI and MPICH where they are absent, and makes the namespaces, which it removes. What
# cannot be had or made is skipped, and said. $MPI_FLAGS are the options of cargo that the tests were built with.
set -euo pipefail
cd "$(dirname "$0")/.."
is_root() { [ "$(id -u)" = 0 ]; }
skip() { echo "!!!! $1 !!!!"; }

# Prints the launcher of a family: Debian's name, or a `mpirun` that says so.
launcher() { # family, what its `--version` says
    if command -v "mpirun.$1"; then return 0; fi
    command -v mpirun >/dev/null && mpirun --version 2>&1 | grep -qE "$2" && command -v mpirun
}
open_mpi() { launcher openmpi 'Open MPI|OpenRTE|Open RTE'; }
mpich() { launcher mpich 'HYDRA|MPICH|Intel'; }

if { ! open_mpi || ! mpich; } >/dev/null && command -v apt-get >/dev/null && is_root; then
    install() { DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends openmpi-bin mpich >/dev/null 2>&1; }
    install || { apt-get update >/dev/null 2>&1 && install; } || true
fi

work=$(mktemp -d)
nodes=()
clean() {
    local node
    for node in "${nodes[@]}"; do ip netns del "$node" 2>/dev/null || true; done
    rm -rf "$work"
}
trap clean EXIT
trap 'exit 1' HUP INT TERM

# Two namespaces, joined by a cable. Everything that runs in one takes it for a machine of its own.
hosts=(10.213.77.1 10.213.77.2)
make_nodes() {
    local index name
    is_root && command -v ip >/dev/null && command -v unshare >/dev/null || return 1
    for index in 0 1; do
        name="qwen-mpi-$$-$index"
        ip netns add "$name" 2>/dev/null || return 1
        nodes+=("$name")
        ip -n "$name" link set lo up || return 1
    done
    ip link add mpi0 netns "${nodes[0]}" type veth peer name mpi0 netns "${nodes[1]}" || return 1
    for index in 0 1; do
        ip -n "${nodes[$index]}" address add "${hosts[$index]}/24" dev mpi0 || return 1
        ip -n "${nodes[$index]}" link set mpi0 up || return 1
    done
    # What launchers take for ssh: options, a host, a command.
    cat >"$work/agent" <<END
#!/usr/bin/env bash
while [ "\${1#-}" != "\$1" ]; do shift; done
host=\$1
shift
case \$host in
${hosts[0]}) exec "$work/on-0" "\$*" ;;
${hosts[1]}) exec "$work/on-1" "\$*" ;;
*) echo "no such machine: \$host" >&2; exit 1 ;;
esac
END
    for index in 0 1; do
        cat >"$work/on-$index" <<END
#!/usr/bin/env bash
exec ip netns exec ${nodes[$index]} unshare --uts bash -c "hostname node-$index && \$*"
END
    done
    chmod +x "$work/agent" "$work/on-0" "$work/on-1"
}
has_nodes=no
if make_nodes; then
    has_nodes=yes
else
    skip "NO NAMESPACES (root, Debian: iproute2): ranks over MPI are not run on several machines"
fi

# Commands that take a number of processes and a program.
commands=()
add() { # name, machine ("here" or a number), command
    if [ "$2" = here ]; then
        printf '#!/usr/bin/env bash\nexec %s "$@"\n' "$3" >"$work/$1"
    else
        printf '#!/usr/bin/env bash\nexec "%s/on-%s" "%s $*"\n' "$work" "$2" "$3" >"$work/$1"
    fi
    chmod +x "$work/$1"
    commands+=("$work/$1")
}
if run=$(open_mpi); then
    as=$(is_root && echo --allow-run-as-root || true)
    add open-mpi here "$run $as --oversubscribe -n"
    [ "$has_nodes" = no ] || add open-mpi-nodes 0 "$run $as --oversubscribe --map-by node \
--mca plm_rsh_agent $work/agent --host ${hosts[0]}:2,${hosts[1]}:2 -n"
else
    skip "NO OPEN MPI (Debian: openmpi-bin): ranks over it are not run"
fi
if run=$(mpich); then
    add mpich here "$run -n"
    [ "$has_nodes" = no ] || add mpich-nodes 0 "$run -launcher ssh -launcher-exec $work/agent -iface mpi0 \
-hosts ${hosts[0]},${hosts[1]} -n"
else
    skip "NO MPICH (Debian: mpich): ranks over it are not run"
fi
[ ${#commands[@]} -gt 0 ] || exit 0

sent() { ip -n "${nodes[0]}" -s link show mpi0 2>/dev/null | awk '/TX:/ { getline; print $1 }'; }
before=0
[ "$has_nodes" = no ] || before=$(sent)
QWEN_MPIRUN=$(IFS=';' && echo "${commands[*]}")
export QWEN_MPIRUN
# One after another: there are more ranks than cores as it is.
# shellcheck disable=SC2086
cargo test --release ${MPI_FLAGS:---features mpi} --test mpi -- --test-threads 1 "$@"
if [ "$has_nodes" = yes ]; then
    bytes=$(($(sent) - before))
    echo "between the two machines: $((bytes >> 20)) MiB"
    # Or else the ranks have found another way, and the two machines were one.
    [ "$bytes" -gt $((1 << 20)) ] || { echo "error: the ranks did not use the network between the machines" >&2; exit 1; }
fi
echo "ranks over MPI, by ${#commands[@]} launchers: $(basename -a "${commands[@]}" | paste -sd ' ')"
