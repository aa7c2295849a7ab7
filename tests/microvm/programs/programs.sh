# programs/mod.rs runs this in a guest, as the job's user: one function per program, each in its own
# directory and process. Prints the name, the exit status, the seconds, and the last line of output,
# separated by tabs.

jvm() {
    mkdir -p com/example
    cat >com/example/Main.java <<'J'
package com.example;
public class Main {
    public static void main(String[] arguments) throws Exception {
        var workers = new java.util.ArrayList<Thread>();
        var sum = new java.util.concurrent.atomic.AtomicLong();
        for (int number = 1; number <= 8; number++) {
            final int own = number;
            var worker = new Thread(() -> sum.addAndGet(own));
            worker.start();
            workers.add(worker);
        }
        for (var worker : workers) worker.join();
        System.out.println("sum " + sum);
    }
}
J
    javac com/example/Main.java
    jar --create --file own.jar --main-class com.example.Main com/example/*.class
    java -jar own.jar
}

node_watch() {
    mkdir tree && (cd tree && seq 500 | xargs mkdir)
    cat >watch.js <<'J'
const fs = require('fs');
const watcher = fs.watch('tree', { recursive: true }, (event, name) => {
    if (name !== '250/file') return;
    console.log('saw', name);
    watcher.close();
});
const write = () => fs.writeFileSync('tree/250/file', String(Date.now()));
const timer = setInterval(write, 500);
watcher.on('close', () => clearInterval(timer));
J
    node watch.js
}

npm_install() {
    mkdir library user
    echo '{"name": "library", "version": "1.0.0", "main": "index.js"}' >library/package.json
    echo 'module.exports = "from a package"' >library/index.js
    (cd library && npm pack --silent >/dev/null)
    cd user
    echo '{"name": "user", "version": "1.0.0"}' >package.json
    npm install --silent --offline --no-audit --no-fund ../library/library-1.0.0.tgz
    node -e 'console.log(require("library"))'
}

elasticsearch() {
    # Its bootstrap checks, which end it if it listens beyond loopback: descriptors, threads, address
    # space, file size, mappings, and a system call filter.
    test "$(ulimit -n)" -ge 65535
    test "$(ulimit -u)" = unlimited || test "$(ulimit -u)" -ge 4096
    test "$(ulimit -v)" = unlimited
    test "$(ulimit -f)" = unlimited
    test "$(cat /proc/sys/vm/max_map_count)" -ge 262144
    grep -qw errno /proc/sys/kernel/seccomp/actions_avail
    echo passed
}

dbus_session() {
    dbus-run-session -- dbus-send --session --print-reply --dest=org.freedesktop.DBus / \
        org.freedesktop.DBus.GetId | grep -c string
}

dbus_system() {
    sudo mkdir -p /run/dbus
    sudo dbus-daemon --system --fork
    dbus-send --system --print-reply --dest=org.freedesktop.DBus / org.freedesktop.DBus.ListNames |
        grep -c org.freedesktop.DBus
}

browse() {
    echo '<p id=p>old</p><script>p.textContent = "new " + (6 * 7)</script>' >page.html
    timeout 500 chromium --headless --disable-gpu "$@" --dump-dom "file://$PWD/page.html" |
        grep -o 'new 42'
}
chromium_without_sandbox() { browse --no-sandbox; }
chromium_sandboxed() { browse; }

xvfb() { xvfb-run --auto-servernum xdpyinfo | grep -c 'dimensions:'; }

postgres() {
    PATH=$PATH:$(echo /usr/lib/postgresql/*/bin)
    initdb --auth=trust --username=own data >/dev/null
    pg_ctl --wait --log=log --options="-p 5433 -k $PWD" start --pgdata=data >/dev/null
    psql --host="$PWD" --port=5433 --username=own --dbname=postgres --no-align --tuples-only \
        --command='select sum(n) from generate_series(1, 100) n'
    pg_ctl --wait stop --pgdata=data >/dev/null
}

redis() {
    redis-server --port 6380 --daemonize yes --dir "$PWD" >/dev/null
    until redis-cli -p 6380 ping 2>/dev/null; do sleep 0.2; done
    redis-cli -p 6380 shutdown nosave
}

sysv_service() {
    sudo service redis-server start >/dev/null
    until redis-cli ping 2>/dev/null; do sleep 0.2; done
    sudo service redis-server stop >/dev/null
}

# Builds an image from this machine's own programs, because no registry is reachable: `base PROGRAM…`.
base() {
    mkdir -p root/usr/bin root/usr/lib root/usr/lib64 root/etc root/tmp
    ln -s usr/bin usr/lib usr/lib64 root/
    local path
    for program in bash cat sleep "$@"; do
        path=$(readlink -f "$(PATH=$PATH:/usr/sbin command -v "$program")")
        cp -L "$path" "root/usr/bin/$program"
        ldd "$path" | grep -o '/[^ ]*' | xargs cp -L --parents --target-directory root
    done
}

docker_compose() {
    base redis-server redis-cli
    tar -C root -c . | docker import - own:1 >/dev/null
    cat >compose.yaml <<'Y'
services:
  store:
    image: own:1
    command: [redis-server, --bind, 0.0.0.0, --protected-mode, "no", --save, ""]
    healthcheck: { test: [CMD, redis-cli, ping], interval: 1s, retries: 60 }
  user:
    image: own:1
    command: [redis-cli, -h, store, set, key, value]
    depends_on: { store: { condition: service_healthy } }
Y
    docker compose --progress quiet up --abort-on-container-exit --exit-code-from user 2>&1 |
        grep -o 'user-1 .*OK'
    docker compose --progress quiet down
    echo composed
}

iptables_in_container() {
    base iptables-nft
    tar -C root -c . | docker import - nft:1 >/dev/null
    cp -rL --parents /usr/lib/x86_64-linux-gnu/xtables root/
    tar -C root -c . | docker import - nft:2 >/dev/null
    docker run --rm --cap-add NET_ADMIN nft:2 iptables-nft -S INPUT
}

gdb_child() {
    echo 'int main(void) { return 0; }' >own.c && gcc -g -o own own.c
    gdb --batch -ex 'break main' -ex run -ex bt ./own 2>&1 | grep -o 'Breakpoint 1, main'
}
live() { sleep 300 & }
gdb_live() {
    live
    ! gdb --batch -p $! 2>&1 | grep -q '^#0'
    sudo gdb --batch -ex bt -p $! 2>&1 | grep -c '^#0'
}
strace_child() { strace -f -c -o out sh -c 'true; ls >/dev/null' && grep -c total out; }
strace_live() {
    live
    ! timeout 5 strace -o refused -p $!
    (sudo timeout 5 strace -o out -p $! || true) 2>&1 | grep -c attached
}
perf() {
    ! command perf stat -e task-clock true 2>/dev/null
    sudo perf stat -e task-clock true 2>&1 | grep -c task-clock
}

python_server() {
    python3 -m venv own
    echo served >page
    own/bin/python -m http.server --bind 127.0.0.1 8001 2>log &
    until curl -fsS --noproxy '*' http://127.0.0.1:8001/page 2>/dev/null; do sleep 0.2; done
}

pip_wheel() {
    mkdir library
    echo 'word = "from a wheel"' >library/library.py
    printf '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n[project]\nname = "library"\nversion = "1"\n' >library/pyproject.toml
    python3 -m pip wheel --quiet --no-index --no-build-isolation --wheel-dir wheels ./library
    python3 -m venv own
    own/bin/pip install --quiet --no-index --find-links wheels library
    own/bin/python -c 'import library; print(library.word)'
}

python_processes() {
    python3 - <<'P'
from multiprocessing import Pool, shared_memory
block = shared_memory.SharedMemory(create=True, size=1 << 20)
def work(number):
    block.buf[number] = number
    return number
with Pool(4) as pool:
    pool.map(work, range(10))
print("shared", sum(block.buf[:10]))
block.unlink()
P
}

gcc_make() {
    printf '#include <stdio.h>\nint main(void) { puts("made"); }\n' >own.c
    printf 'own: own.o\n\t$(CC) -o $@ $^\n' >Makefile
    make --silent -j2 && ./own
}
cmake_ninja() {
    printf '#include <iostream>\nint main() { std::cout << "built\\n"; }\n' >own.cpp
    printf 'cmake_minimum_required(VERSION 3.20)\nproject(own CXX)\nadd_executable(own own.cpp)\nenable_testing()\nadd_test(own own)\n' >CMakeLists.txt
    cmake -G Ninja -B build . >/dev/null && cmake --build build >/dev/null
    ctest --test-dir build | grep -o '100% tests passed'
}
go_build() {
    export GOTOOLCHAIN=local
    go mod init example.com/own 2>/dev/null
    printf 'package main\nimport "fmt"\nfunc main() { c := make(chan int); go func() { c <- 42 }(); fmt.Println(<-c) }\n' >main.go
    go build -o own . && ./own
}
rust() {
    echo 'fn main() { println!("{}", std::thread::spawn(|| 42).join().unwrap()); }' >own.rs
    rustc own.rs && ./own
}

git_http() {
    git init -q -b main work
    git -C work -c user.name=t -c user.email=t@example.com commit -q --allow-empty -m first
    git clone -q --bare work bare.git
    git -C bare.git update-server-info
    python3 -m http.server --bind 127.0.0.1 8002 2>log &
    until git clone -q http://127.0.0.1:8002/bare.git by-http 2>/dev/null; do sleep 0.2; done
    git clone -q "file://$PWD/bare.git" by-file
    diff <(git -C by-http log) <(git -C by-file log)
    git -C by-http log --format=%s
}

sshd() {
    # Created by the service's unit on a machine with systemd.
    sudo mkdir -p /run/sshd
    ssh-keygen -q -t ed25519 -N '' -f host
    ssh-keygen -q -t ed25519 -N '' -f key
    /usr/sbin/sshd -f /dev/null -h "$PWD/host" -p 2222 -o ListenAddress=127.0.0.1 \
        -o AuthorizedKeysFile="$PWD/key.pub" -o StrictModes=no -o PidFile="$PWD/pid" -E "$PWD/log"
    eval "$(ssh-agent)" >/dev/null
    ssh-add -q key
    ssh -p 2222 -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR \
        127.0.0.1 echo by ssh || { cat log; return 1; }
    kill "$(cat pid)" "$SSH_AGENT_PID"
}

gnupg() {
    mkdir -m 700 keys && export GNUPGHOME=$PWD/keys
    gpg --batch --quiet --passphrase '' --quick-generate-key own@example.com ed25519 2>/dev/null
    echo text >file
    gpg --batch --quiet --detach-sign file && gpg --verify file.sig 2>&1 | grep -o 'Good signature'
    gpgconf --kill all
}

nginx() {
    printf 'pid %s/pid; error_log %s/error; events {}\nhttp { access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fast; uwsgi_temp_path uw; scgi_temp_path s; server { listen 127.0.0.1:8003; location / { return 200 "served\\n"; } } }\n' "$PWD" "$PWD" >own.conf
    /usr/sbin/nginx -p "$PWD" -c "$PWD/own.conf" -e "$PWD/error"
    until curl -fsS --noproxy '*' http://127.0.0.1:8003/ 2>/dev/null; do sleep 0.2; done
    /usr/sbin/nginx -p "$PWD" -c "$PWD/own.conf" -e "$PWD/error" -s stop
}

sqlite() { sqlite3 own.db 'pragma journal_mode=wal; create table t(n); insert into t values(42); select n from t;' | tail -n 1; }
ffmpeg_encode() {
    ffmpeg -v error -f lavfi -i testsrc=duration=1:size=160x120:rate=5 own.mp4 </dev/null
    ffprobe -v error -count_frames -show_entries stream=nb_read_frames -of csv=p=0 own.mp4
}
tmux_session() {
    tmux -L own new-session -d -s own 'echo inside >out; sleep 1'
    until grep -s inside out; do sleep 0.2; done
    tmux -L own kill-server
}
pty() { script --quiet --return --command 'test -t 0 && stty size >/dev/null && echo terminal' log </dev/null | tr -d '\r'; }

user_namespace() { unshare --user --map-root-user id -u; }
bubblewrap() { bwrap --ro-bind / / --proc /proc --dev /dev --unshare-all sh -c 'echo $$' | grep -c .; }
allow_user_namespaces() { sudo sysctl -qw kernel.unprivileged_userns_clone=1; echo allowed; }
podman_rootless() {
    base && tar -C root -c . | podman import --quiet - own >/dev/null
    podman run --rm --network none own cat /proc/self/uid_map | wc -l
}
podman_root() {
    base && tar -C root -c . | sudo podman import --quiet - own >/dev/null
    sudo podman run --rm --network none own bash -c 'echo contained'
}
fuse_overlayfs() {
    mkdir lower upper work merged && echo below >lower/file
    sudo fuse-overlayfs -o lowerdir=lower,upperdir=upper,workdir=work,allow_other merged
    cat merged/file
    sudo umount merged
}
loop_mount() {
    truncate -s 8M disk && /usr/sbin/mkfs.ext4 -q disk
    mkdir mounted && sudo mount -o loop disk mounted && sudo umount mounted && echo mounted
}
network_namespace() {
    sudo ip netns add own
    sudo ip link add outside type veth peer name inside netns own
    sudo ip netns exec own ip -brief link show inside | grep -c inside
    sudo ip netns delete own
}
tun() { sudo ip tuntap add own mode tun && echo made; }

apt_file() {
    mkdir -p own/DEBIAN own/opt repository
    printf 'Package: own\nVersion: 1\nArchitecture: all\nMaintainer: t <t@example.com>\nDescription: own\n' >own/DEBIAN/control
    echo installed >own/opt/own
    dpkg-deb --root-owner-group --build own repository >/dev/null
    (cd repository && dpkg-scanpackages . >Packages 2>/dev/null)
    echo "deb [trusted=yes] file:$PWD/repository ./" >own.list
    chmod 755 . ..
    sudo cp own.list /etc/apt/sources.list.d/own.list
    sudo apt-get -qq -o Dir::Etc::sourcelist=sources.list.d/own.list -o Dir::Etc::sourceparts=- update
    sudo DEBIAN_FRONTEND=noninteractive apt-get -qq install own >/dev/null
    cat /opt/own
}

inotify() {
    inotifywait --quiet --event create --format %f . >out &
    local watcher=$!
    until test -s out; do touch "new-$RANDOM"; sleep 0.3; done
    wait $watcher && grep -c new out
}
limits() { ulimit -n 1048576 && ulimit -c && ulimit -n; }
swap() {
    sudo dd if=/dev/zero of=/swapfile bs=1M count=16 status=none && sudo chmod 600 /swapfile
    sudo mkswap /swapfile >/dev/null && sudo swapon /swapfile && sudo swapoff -a && echo swapped
}
cron_job() {
    ! (echo '* * * * * true' | crontab - 2>/dev/null)
    echo "* * * * * echo ran >$PWD/out" | sudo crontab -u runner -
    sudo cron
    until grep -s ran out; do sleep 1; done
}
systemd() { systemctl --user status; }
hostname_server() {
    echo named >page
    python3 -m http.server 8004 2>log &
    until curl -fsS "http://$(hostname):8004/page" 2>/dev/null; do sleep 0.2; done
}

try() {
    local begun=$SECONDS said status
    mkdir -p "$HOME/tried/$1" && cd "$HOME/tried/$1" || return
    # In its own shell, so that a failure ends it, and processes that it left running are killed.
    set -m
    (set -e -o pipefail; "$1") >"../$1.out" 2>&1 </dev/null &
    local group=$! guard
    (sleep 600 && kill -KILL -- "-$group") 2>/dev/null >&2 &
    guard=$!
    wait $group
    status=$?
    kill -KILL -- "-$guard" "-$group" 2>/dev/null
    set +m
    said=$(tail -n 1 "../$1.out" | tr -d '\t')
    printf 'tried\t%s\t%s\t%s\t%s\n' "$1" "$status" $((SECONDS - begun)) "$said"
    [ "$status" = 0 ] || sed "s/^/$1: /" "../$1.out" | tail -n 15 >&2
}
for name; do try "$name"; done
