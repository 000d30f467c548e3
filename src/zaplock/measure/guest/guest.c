/* The probe as the init of a guest: mounts, finds the capsule's device, ends the virtual machine. */

static void guest_boot(void)
{
	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	if (mount("proc", "/proc", "proc", 0, NULL) || mount("sysfs", "/sys", "sysfs", 0, NULL))
		die("cannot mount procfs and sysfs%s", "");
	(void)!mount("tracefs", "/sys/kernel/tracing", "tracefs", 0, NULL); /* a kernel may have none */
}

static int guest_reads(const char *device, const char *file, const char *wanted)
{
	char path[256], text[16] = "";
	int fd;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/%s", device, file);
	fd = open(path, O_RDONLY);
	if (fd >= 0) {
		(void)!read(fd, text, sizeof(text) - 1);
		close(fd);
	}
	return !strncmp(text, wanted, 6);
}

/* Name the file of the second BAR of the ivshmem device: it is the capsule. */
static const char *guest_capsule(void)
{
	static char path[288];
	struct dirent *entry;
	DIR *directory = opendir("/sys/bus/pci/devices");

	while (directory && (entry = readdir(directory)))
		if (guest_reads(entry->d_name, "vendor", "0x1af4") && guest_reads(entry->d_name, "device", "0x1110")) {
			snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/enable", entry->d_name);
			write_file(path, "1");
			snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/resource2", entry->d_name);
			return path;
		}
	die("there is no ivshmem device%s", "");
}

/* Have the kernel report tasks that sleep uninterruptibly for so long, and look every second. */
static void guest_hung_task(const char *seconds)
{
	if (!seconds)
		return;
	write_file("/proc/sys/kernel/hung_task_timeout_secs", seconds);
	write_file("/proc/sys/kernel/hung_task_check_interval_secs", "1");
	write_file("/proc/sys/kernel/hung_task_warnings", "60"); /* 10 may be gone before all had theirs */
}

static void guest_exit(int failed)
{
	if (!ioperm(0xf4, 1, 1))
		outb(failed, 0xf4);
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}
