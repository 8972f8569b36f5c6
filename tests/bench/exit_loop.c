/* The cost of an exit without us: the guest `tests/bench/vmm_exits.py` runs, in the same kind of machine, its exits taken by
 * the shortest loop there is. For each line it reads it takes `WARM_UP` exits, then a window of them, and prints what one of
 * these took: microseconds by the clock, and of this thread's processor time. */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

static double now_us(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return now.tv_sec * 1e6 + now.tv_nsec / 1e3;
}

static void check(int failed, const char *what)
{
	if (failed) {
		perror(what);
		exit(1);
	}
}

static struct kvm_run *run;
static int vcpu;

static void take(unsigned long exits)
{
	unsigned long writes = 0;

	while (writes < exits) {
		check(ioctl(vcpu, KVM_RUN, 0) < 0, "KVM_RUN");
		switch (run->exit_reason) {
		case KVM_EXIT_IO:
			if (run->io.direction == KVM_EXIT_IO_OUT && run->io.port == 0x80)
				writes++;
			break;
		default:
			fprintf(stderr, "exit %u\n", run->exit_reason);
			exit(1);
		}
	}
}

/* argv: exits of the warm-up, exits of a window, the guest's code in hexadecimal, which runs in real mode at 0x1000 */
int main(int argc, char **argv)
{
	unsigned long warm_up = strtoul(argv[1], NULL, 10), window = strtoul(argv[2], NULL, 10);
	const size_t size = 1 << 20;
	struct kvm_pit_config pit = { .flags = KVM_PIT_SPEAKER_DUMMY };
	struct kvm_userspace_memory_region ram = { .memory_size = size };
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rip = 0x1000, .rsp = 0x1000, .rflags = 2 };
	unsigned char *memory;
	double began, began_cpu;
	int kvm, vm;
	unsigned int byte;
	char line[16];

	kvm = open("/dev/kvm", O_RDWR);
	check(kvm < 0, "/dev/kvm");
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	check(vm < 0, "KVM_CREATE_VM");
	check(ioctl(vm, KVM_SET_TSS_ADDR, 0xfeffd000ul) < 0, "KVM_SET_TSS_ADDR");
	check(ioctl(vm, KVM_CREATE_IRQCHIP, 0) < 0, "KVM_CREATE_IRQCHIP");
	check(ioctl(vm, KVM_CREATE_PIT2, &pit) < 0, "KVM_CREATE_PIT2");
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	check(memory == MAP_FAILED, "mmap");
	for (const char *code = argv[3], *end = code + strlen(code); code < end; code += 2) {
		sscanf(code, "%2x", &byte);
		memory[0x1000 + (code - argv[3]) / 2] = byte;
	}
	ram.userspace_addr = (unsigned long)memory;
	check(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &ram) < 0, "KVM_SET_USER_MEMORY_REGION");
	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	check(vcpu < 0, "KVM_CREATE_VCPU");
	run = mmap(NULL, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	check(run == MAP_FAILED, "mmap");
	ioctl(vcpu, KVM_GET_SREGS, &sregs);
	sregs.cs.base = sregs.cs.selector = 0;
	check(ioctl(vcpu, KVM_SET_SREGS, &sregs) < 0 || ioctl(vcpu, KVM_SET_REGS, &regs) < 0, "KVM_SET_REGS");
	while (fgets(line, sizeof(line), stdin)) {
		take(warm_up);
		began = now_us(CLOCK_MONOTONIC);
		began_cpu = now_us(CLOCK_THREAD_CPUTIME_ID);
		take(window);
		printf("%.4f %.4f\n", (now_us(CLOCK_MONOTONIC) - began) / window,
		       (now_us(CLOCK_THREAD_CPUTIME_ID) - began_cpu) / window);
		fflush(stdout);
	}
	return 0;
}
