/* Load for a guest's disk and network, and the other end of the latter. Static: a guest has no C library.
 *
 *   load rand DEVICE SECONDS WORKERS   random reads of 4 KiB, O_DIRECT, by processes: reads a second of all of them
 *   load seq DEVICE SECONDS            sequential reads of 1 MiB, O_DIRECT: MiB/s
 *   load send HOST PORT SECONDS        TCP to `sink`: MiB/s
 *   load receive HOST PORT SECONDS     TCP from `source`: MiB/s
 *   load serve PORT                    sink on PORT, source on PORT + 1, for ever
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MIB (1 << 20)
#define BLOCK 4096

static char buffer[MIB] __attribute__((aligned(4096)));

static void check(int failed, const char *what)
{
	if (failed) {
		perror(what);
		exit(1);
	}
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static int open_device(const char *path, unsigned long long *size)
{
	int fd = open(path, O_RDONLY | O_DIRECT);

	check(fd < 0, path);
	check(ioctl(fd, BLKGETSIZE64, size) < 0, "BLKGETSIZE64");
	return fd;
}

static double random_reads(const char *path, double seconds, unsigned int seed)
{
	unsigned long long size, place, count = 0;
	int fd = open_device(path, &size);
	double began = now(), took;

	do {
		for (int i = 0; i < 16; i++) {
			place = ((unsigned long long)rand_r(&seed) << 15 ^ rand_r(&seed)) % (size / BLOCK);
			check(pread(fd, buffer, BLOCK, place * BLOCK) != BLOCK, "pread");
		}
		count += 16;
		took = now() - began;
	} while (took < seconds);
	return count / took;
}

static double random_reads_of(const char *path, double seconds, int workers)
{
	double rate, total = 0;
	int pipes[2];

	check(pipe(pipes) < 0, "pipe");
	for (int i = 0; i < workers; i++) {
		if (fork() == 0) {
			rate = random_reads(path, seconds, 17 * i + 1);
			check(write(pipes[1], &rate, sizeof(rate)) != sizeof(rate), "write");
			_exit(0);
		}
	}
	for (int i = 0; i < workers; i++) {
		check(read(pipes[0], &rate, sizeof(rate)) != sizeof(rate), "read");
		total += rate;
	}
	while (wait(NULL) > 0)
		;
	return total;
}

static double sequential_reads(const char *path, double seconds)
{
	unsigned long long size, count = 0;
	int fd = open_device(path, &size);
	double began = now(), took;

	do {
		check(pread(fd, buffer, MIB, count % (size / MIB) * MIB) != MIB, "pread");
		count++;
		took = now() - began;
	} while (took < seconds);
	return count / took;
}

static int connected(const char *host, int port)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(port) };
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	check(fd < 0, "socket");
	check(inet_pton(AF_INET, host, &to.sin_addr) != 1, host);
	check(connect(fd, (struct sockaddr *)&to, sizeof(to)) < 0, "connect");
	return fd;
}

/* Only what the other end has taken counts, but for what its buffers hold. */
static double transfer(int fd, double seconds, int sends)
{
	double began = now(), took;
	unsigned long long bytes = 0;
	ssize_t moved;

	do {
		moved = sends ? send(fd, buffer, 256 << 10, 0) : recv(fd, buffer, 256 << 10, 0);
		check(moved <= 0, sends ? "send" : "recv");
		bytes += moved;
		took = now() - began;
	} while (took < seconds);
	close(fd);
	return bytes / took / MIB;
}

static void serve(int port, int sends)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(port) };
	int listener = socket(AF_INET, SOCK_STREAM, 0), fd, yes = 1;

	signal(SIGPIPE, SIG_IGN);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
	check(bind(listener, (struct sockaddr *)&at, sizeof(at)) < 0 || listen(listener, 4) < 0, "listen");
	for (;;) {
		fd = accept(listener, NULL, NULL);
		check(fd < 0, "accept");
		while ((sends ? send(fd, buffer, 256 << 10, 0) : recv(fd, buffer, 256 << 10, 0)) > 0)
			;
		close(fd);
	}
}

int main(int argc, char **argv)
{
	const char *verb = argc > 1 ? argv[1] : "";

	if (!strcmp(verb, "rand") && argc == 5)
		printf("%.1f\n", random_reads_of(argv[2], atof(argv[3]), atoi(argv[4])));
	else if (!strcmp(verb, "seq") && argc == 4)
		printf("%.1f\n", sequential_reads(argv[2], atof(argv[3])));
	else if (!strcmp(verb, "send") && argc == 5)
		printf("%.2f\n", transfer(connected(argv[2], atoi(argv[3])), atof(argv[4]), 1));
	else if (!strcmp(verb, "receive") && argc == 5)
		printf("%.2f\n", transfer(connected(argv[2], atoi(argv[3])), atof(argv[4]), 0));
	else if (!strcmp(verb, "serve") && argc == 3) {
		if (fork() == 0)
			serve(atoi(argv[2]) + 1, 1);
		serve(atoi(argv[2]), 0);
	} else
		return 2;
	return 0;
}
