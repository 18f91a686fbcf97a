#!/usr/bin/env bash
# A real S3 server on this machine for tests: Ceph's gateway with one monitor and one disk, all of it on 127.0.0.1.
#
#   infra/s3/ceph.sh start DIR [PORT]          start what does not run, and return once S3 answers (9 s, again 5 s)
#   infra/s3/ceph.sh stop DIR [-9 [rgw|osd|mon]]   stop it, or one daemon; -9 is a power cut: nothing is flushed
#
# S3_KEY and S3_SECRET name the user that a new DIR gets. Needs `make s3`, and no root. Everything lies in DIR, sparse:
# an empty server takes about 100 MB. The monitor answers on PORT + 1, the disk on free ports from 6800.
set -euo pipefail

usage() { sed -n '4,5s/^# *//p' "$0" >&2; exit 2; }

# Not `kill -0`, which a dead process answers too until its parent, in a container often nobody, has taken note of it.
running() { grep -qs '^State:[[:space:]]*[^ZX[:space:]]' "/proc/$1/status"; }

alive() { [ -f "$DIR/$1.pid" ] && running "$(cat "$DIR/$1.pid")"; }

# launch NAME COMMAND...: in its own session, so that an interrupt in the terminal of the tests does not reach it.
launch() {
  local name=$1
  shift
  setsid "$@" >>"$DIR/log/$name.out" 2>&1 </dev/null &
  echo $! >"$DIR/$name.pid"
}

end() {
  local name=$1 signal=$2 pid
  alive "$name" || { rm -f "$DIR/$name.pid"; return 0; }
  pid=$(cat "$DIR/$name.pid")
  kill "$signal" "$pid" 2>/dev/null || true
  for _ in $(seq 50); do
    running "$pid" || break
    sleep 0.1
  done
  if running "$pid"; then kill -9 "$pid"; fi # a disk that flushes for more than five seconds
  rm -f "$DIR/$name.pid"
}

configure() {
  cat >"$CEPH_CONF" <<CONF
[global]
fsid = $(cat /proc/sys/kernel/random/uuid)
mon host = v1:127.0.0.1:$((PORT + 1))
public network = 127.0.0.0/8
cluster network = 127.0.0.0/8
keyring = $DIR/keyring
auth allow insecure global id reclaim = false
run dir = $DIR
# Paths of sockets are at most 107 characters, which folders of tests exceed; nobody asks these daemons anything.
admin socket =
pid file =
log file = $DIR/log/\$name.log
# One disk, one copy of everything.
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000
# A machine whose own disk is nearly full still runs tests.
mon data avail crit = 1
mon data avail warn = 2
# Agree at once: there is nobody to wait for.
paxos propose interval = 0.05
paxos min wait = 0.01
# Not memstore, which keeps deleted objects in memory for minutes.
osd objectstore = bluestore
bluestore block size = 8589934592
bluestore cache autotune = false
bluestore cache size = 67108864
osd memory target = 939524096
# Deleted objects leave the disk within seconds; a day of a lifecycle rule takes ten seconds.
rgw gc obj min wait = 5
rgw gc processor period = 10
rgw gc processor max time = 10
rgw lc debug interval = 10
[mon]
mon data = $DIR/mon
[osd]
osd data = $DIR/osd
[client]
rgw data = $DIR/rgw
CONF
}

# The gateway does not start without authentication between the daemons.
make_keys() {
  local name
  ceph-authtool --create-keyring "$DIR/keyring" --gen-key -n mon. --cap mon 'allow *'
  for name in client.admin client.rgw.a osd.0; do
    ceph-authtool "$DIR/keyring" --gen-key -n "$name" --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
  done
}

make_monitor() {
  monmaptool --create --clobber --fsid "$(ceph-conf --lookup fsid)" --addv a "v1:127.0.0.1:$((PORT + 1))" "$DIR/monmap"
  ceph-mon -i a --mkfs --monmap "$DIR/monmap" --keyring "$DIR/keyring"
}

make_disk() {
  local id
  id=$(cat /proc/sys/kernel/random/uuid)
  ceph osd new "$id"
  ceph-osd -i 0 --mkfs --osd-uuid "$id"
}

# A gateway without its user refuses every request. What the program prints holds the keys, so it is kept nowhere.
make_user() {
  if radosgw-admin user create --uid=test --display-name=test --access-key="${S3_KEY:-testkey}" \
    --secret-key="${S3_SECRET:-testsecret}" >/dev/null 2>>"$DIR/log/make.out"; then return 0; fi
  echo "the S3 server's user could not be made; radosgw-admin said: $(tail -3 "$DIR/log/make.out")" >&2
  return 1
}

start() {
  local new=1
  [ ! -f "$DIR/made" ] || new=0
  mkdir -p "$DIR/mon" "$DIR/osd" "$DIR/rgw" "$DIR/log"
  if [ $new = 1 ]; then
    configure
    { make_keys && make_monitor; } >>"$DIR/log/make.out" 2>&1
  fi
  alive mon || launch mon ceph-mon -i a -f
  if [ $new = 1 ]; then make_disk >>"$DIR/log/make.out" 2>&1; fi
  alive osd || launch osd ceph-osd -i 0 -f
  if [ $new = 1 ]; then
    make_user
    touch "$DIR/made"
  fi
  alive rgw || launch rgw radosgw -n client.rgw.a -f --rgw-frontends="beast endpoint=127.0.0.1:$PORT"
  await
}

await() {
  for _ in $(seq 600); do
    if curl --silent --output /dev/null "http://127.0.0.1:$PORT/"; then return 0; fi
    alive rgw || break
    sleep 0.1
  done
  echo "no S3 server answers on 127.0.0.1:$PORT; what its daemons said lies in $DIR/log" >&2
  return 1
}

stop() {
  local name
  for name in ${2:-rgw osd mon}; do end "$name" "${1:--TERM}"; done
}

[ $# -ge 2 ] || usage
DIR=$(mkdir -p "$2" && cd "$2" && pwd)
export CEPH_CONF=$DIR/ceph.conf
PORT=${3:-9000}
case $1 in
  start) start ;;
  stop) stop "${@:3}" ;;
  *) usage ;;
esac
