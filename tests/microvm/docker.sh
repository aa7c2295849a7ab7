# docker.rs runs this in a guest, as the job's user. Prints the name, a tab, and the output of each check.
set -e
tell() { printf '%s\t%s\n' "$1" "$(cat | tr '\n' ' ' | sed 's/ $//')"; }
# The engine's processes may be hidden from the job, but its PID file is not.
engine() { if test -e /run/docker.pid; then echo runs; else echo waits; fi; }
# Reads from a server that sends first. In bash: the image does not contain curl's libraries.
hear() { exec 3<>"/dev/tcp/$1/$2"; cat <&3; exec 3>&-; }

id -un | tell user
test -S /run/docker.sock
engine | tell before

# --- jobs without containers ---------------------------------------------------------------------
cat >server.c <<'C'
#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int count, char **arguments) {
    const char *words = "hello from C\n";
    if (count == 1) return fputs(words, stdout) < 0;
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(80)};
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&any, sizeof any) || listen(listener, 9)) return 1;
    for (;;) {
        int client = accept(listener, 0, 0);
        write(client, words, strlen(words));
        close(client);
    }
}
C
gcc -O -Wno-unused-result -o server server.c
./server | tell c
python3 -c 'import json; print(".".join(json.loads("[\"0\", \"1\"]") + list(map(str, range(2, 5)))))' | tell python
git init -q repository
git -C repository -c user.name=t -c user.email=t@example.com commit -q --allow-empty -m first
git clone -q repository clone
git -C clone log --format=%s | tell git

# --- the engine starts by itself -----------------------------------------------------------------
begun=$(date +%s%N)
docker version >version
echo $((($(date +%s%N) - begun) / 1000000)) | tell first-answer
engine | tell after

# --- an image of this machine's own programs -----------------------------------------------------
mkdir -p root/usr/bin root/usr/lib root/usr/lib64 root/etc root/tmp
ln -s usr/bin usr/lib usr/lib64 root/
for program in bash cat sed; do
    path=$(command -v $program)
    cp -L "$path" root/usr/bin/
    ldd "$path" | grep -o '/[^ ]*' | xargs cp -L --parents --target-directory root
done
cp server root/server
echo 'hosts: files dns' >root/etc/nsswitch.conf
tar -C root -c . | docker import - own >/dev/null

docker run --rm --memory 64m own cat /sys/class/net/eth0/mtu /sys/fs/cgroup/memory.max >run
sed -n 1p run | tell default-network
sed -n 2p run | tell limit

# --- a build, a service, a network of the workflow ----------------------------------------------
mkdir context
cat >context/Dockerfile <<'D'
FROM own
RUN ["/usr/bin/bash", "-c", "echo built in a container >/page"]
CMD ["/server", "serve"]
D
docker build --quiet --tag service context >/dev/null
docker network create ci >/dev/null
docker network inspect ci --format '{{index .Options "com.docker.network.driver.mtu"}}' |
    tell network-option
docker run --detach --name service --network ci --publish 127.0.0.1:8080:80 service >/dev/null
docker exec service cat /page | tell built
for _ in $(seq 300); do
    if hear 127.0.0.1 8080 >heard 2>/dev/null && test -s heard; then break; fi
    sleep 0.1
done
tell service-by-port <heard

cat >within.sh <<'S'
hear() { exec 3<>"/dev/tcp/$1/$2"; cat <&3; exec 3>&-; }
cat /sys/class/net/eth0/mtu
hear service 80
exec 3<>/dev/tcp/web.test/80
printf 'GET / HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n' >&3
cat <&3 | sed -n '$p'
if (exec 3<>/dev/tcp/denied.test/80) 2>/dev/null; then echo reached; else echo refused; fi
S
docker run --rm --interactive --network ci own bash <within.sh >within
sed -n 1p within | tell network
sed -n 2p within | tell service-by-name
sed -n 3p within | tell allowed
sed -n 4p within | tell refused
