# Opens half-open connections: sends a SYN from each of 10,000 ports and never responds to the SYN-ACK.
# Prints how many SYN-ACKs came at once, and how many were repeated later, which a host does for a
# connection that is still half open.
use strict;
use warnings;
use Socket;
use Time::HiRes qw(sleep time);

my $own = inet_aton('172.31.0.2');
my @listeners = ([inet_aton('172.31.0.1'), 53], [inet_aton('172.31.0.1'), 3128],
    [(gethostbyname 'tls.test')[4], 443], [(gethostbyname 'web.test')[4], 80]);
my ($first, $count) = (20_000, 10_000);

# The local kernel does not know these connections and would reset them, so a rule drops whatever it
# sends from those ports (rtnetlink(7): RTM_NEWRULE; FR_ACT_BLACKHOLE; FRA_SPORT_RANGE). The rule does
# not match packets of a raw socket, which have no port for it.
socket(my $netlink, 16, SOCK_RAW, 0) or die "netlink: $!";
my $rule = pack('C8 L', 2, 0, 0, 0, 0, 0, 0, 6, 0)
    . pack('S S S S', 8, 23, $first, $first + $count - 1);
my $message = pack('L S S L L', 16 + length $rule, 32, 0x605, 1, 0) . $rule;
send($netlink, $message, 0, pack('S S L L', 16, 0, 0, 0)) or die "rule: $!";
recv($netlink, my $answer, 4096, 0);
my $error = unpack('x16 l', $answer);
die "rule: error $error" if $error;

sub checksum {
    my $sum = unpack('%32n*', $_[0]);
    $sum = ($sum & 0xffff) + ($sum >> 16) while $sum >> 16;
    return ~$sum & 0xffff;
}

sub syn {
    my ($to, $source, $target) = @_;
    my $build = sub { pack('n n N N C C n n n', $source, $target, 1, 0, 0x50, 2, 65535, $_[0], 0) };
    my $pseudo = $own . $to . pack('n n', 6, 20);
    return $build->(checksum($pseudo . $build->(0)));
}

# Without this, the kernel would drop the SYN-ACKs: because of that rule, their source is unreachable.
for my $device ('all', 'eth0') {
    open my $filter, '>', "/proc/sys/net/ipv4/conf/$device/rp_filter" or die "rp_filter: $!";
    print $filter 0;
}
socket(my $raw, PF_INET, SOCK_RAW, 6) or die "raw: $!";
setsockopt($raw, SOL_SOCKET, SO_RCVBUF, pack('i', 4 << 20));
my %answers;

# Reads the available SYN-ACKs: IP and TCP headers with SYN and ACK set.
sub hear {
    my $heard = 0;
    while (defined recv($raw, my $packet, 100, MSG_DONTWAIT)) {
        my ($port, $flags) = unpack('x22 n x9 C', $packet);
        next unless ($flags & 0x12) == 0x12 && $port >= $first && $port < $first + $count;
        $answers{$port}++;
        $heard++;
    }
    return $heard;
}

for my $number (0 .. $count - 1) {
    my ($address, $target) = @{ $listeners[$number % @listeners] };
    my $sent = send($raw, syn($address, $first + $number, $target), 0, sockaddr_in(0, $address));
    # Retry if the queue of the network card is full.
    until (defined $sent) {
        sleep 0.01;
        $sent = send($raw, syn($address, $first + $number, $target), 0, sockaddr_in(0, $address));
    }
    hear() if $number % 50 == 0;
}
hear();
my $answered = keys %answers;
my $repeated = 0;
my $end = time + 4;
while (time < $end) {
    $repeated += hear();
    sleep 0.1;
}
print "sent $count, answered $answered, repeated $repeated\n";
