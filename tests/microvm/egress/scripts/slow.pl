# Slow clients: many on each listener, each sending a byte every half second. Prints a line for each
# kind: the number that the server disconnected, the total, and the longest time in seconds.
use strict;
use warnings;
use Socket;
use Time::HiRes qw(sleep time);
use Fcntl;

my ($web, $tls) = map { (gethostbyname $_)[4] } qw(web.test tls.test);
my $gateway = inet_aton('172.31.0.1');
my $hello = "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
my $connect = "CONNECT tls.test:443 HTTP/1.1\r\nHost: tls.test:443\r\n";
# Name, address, port, the first message, and the message after the response.
my @kinds = (
    ['dns', $gateway, 53, "\x00\x40"],
    ['proxy', $gateway, 3128, "GET http://web.test/ HTTP/1.1\r\nX-Slow: "],
    ['connect', $gateway, 3128, "${connect}X-Slow: "],
    ['tunnel', $gateway, 3128, "$connect\r\n", $hello],
    ['tls', $tls, 443, $hello],
    ['http', $web, 80, "POST / HTTP/1.1\r\nX-Slow: "],
);
my $each = 20;
$SIG{PIPE} = 'IGNORE';
my @clients;
for my $kind (@kinds) {
    my ($name, $address, $port, $first, $then) = @$kind;
    for (1 .. $each) {
        socket(my $socket, PF_INET, SOCK_STREAM, 0) or die;
        connect($socket, sockaddr_in($port, $address)) or die "$name: $!";
        fcntl($socket, F_SETFL, O_NONBLOCK) or die;
        syswrite($socket, $first);
        push @clients, { name => $name, socket => $socket, then => $then, begun => time };
    }
}
my (%count, %longest);
my $end = time + 75;
while (@clients && time < $end) {
    my @left;
    for my $client (@clients) {
        my $read = sysread($client->{socket}, my $heard, 4096);
        if (defined $read && $read && defined $client->{then}) {
            syswrite($client->{socket}, $client->{then});
            undef $client->{then};
        } elsif (defined $read && !$read || !defined $read && !$!{EAGAIN}) {
            my ($name, $took) = ($client->{name}, time - $client->{begun});
            $count{$name}++;
            $longest{$name} = $took if $took > ($longest{$name} // 0);
            next;
        }
        syswrite($client->{socket}, 'a') unless defined $client->{then};
        push @left, $client;
    }
    @clients = @left;
    sleep 0.5;
}
for my $name (map { $_->[0] } @kinds) {
    printf "%s %d of %d after %.1f s, ", $name, $count{$name} // 0, $each, $longest{$name} // 0;
}
