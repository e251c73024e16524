#!/bin/sh
# A stand-in for the daemon, to try the laboratory's runner without it. The nodes agree through a file that the owner
# touches and that all of them see: that is why this is no daemon. A file "careless" beside it makes the new owner
# leave the addresses of the old one alone, as a manager without a fence must: then two hosts answer.
# Called as: stand-in.sh --config <run>/<node>/vipd.toml
config=$2
run=$(dirname "$(dirname "$config")")
id=$(sed -n 's/^id = //p' "$config" | head -n 1)
vips=$(sed -n '/^\[\[initial_vip/,$s/^address = "\(.*\)"/\1/p' "$config")
prefix=$(basename "$run" | cut -d- -f1)
owner=

each_vip() { # add|del, namespace
    for vip in $vips; do
        case $vip in
        *:*) echo "addr $1 $vip/128 dev eth0 nodad" ;;
        *) echo "addr $1 $vip/32 dev eth0" ;;
        esac
    done | sed "$([ "$1" = del ] && echo 's/ nodad//')" | ip -force -n "$2" -batch - 2>/dev/null
}

take() {
    owner=yes
    echo "$id" >"$run/beat"
    echo "node $id takes over"
    if ! [ -e "$run/careless" ]; then
        for other in 1 2 3; do
            [ "$other" = "$id" ] || each_vip del "$prefix-n$other"
        done
    fi
    each_vip add "$prefix-n$id"
    # Stands for the announcements.
    ip -n "$prefix-client" neigh flush dev eth0
}

leave() {
    owner=
    each_vip del "$prefix-n$id"
}

trap '[ "$owner" ] && leave && rm -f "$run/beat"; exit 0' TERM
while :; do
    if ip link show eth0 | grep -q NO-CARRIER; then
        [ "$owner" ] && leave
    elif [ "$owner" ]; then
        if [ "$(cat "$run/beat")" = "$id" ]; then touch "$run/beat"; else leave; fi
    elif ! [ "$(find "$run/beat" -newermt '-0.3 seconds' 2>/dev/null)" ]; then
        # Each node in turn, so that not two of them take over at once.
        sleep "0.$id"
        [ "$(find "$run/beat" -newermt '-0.3 seconds' 2>/dev/null)" ] || take
    fi
    sleep 0.03
done
