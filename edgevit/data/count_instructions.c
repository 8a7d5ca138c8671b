/* A plugin of qemu's user-mode emulator: how many instructions a program executes.
 *
 *     cc -shared -fPIC -O2 -DAPI=1 -o count.so count_instructions.c
 *     qemu-aarch64 -plugin ./count.so -d plugin -D log.%d program ...
 *
 * Each block of code adds its length where it runs, whichever thread runs it. What the plugin needs
 * of qemu is declared here, since distributions ship no header for it. API is the version of that
 * interface: 1 for qemu 5 to 8, 2 from qemu 9 on.
 */
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define SHOWN __attribute__((visibility("default")))

struct qemu_plugin_tb;
typedef void (*block_translated)(uint64_t id, struct qemu_plugin_tb *block);
typedef void (*block_runs)(unsigned int cpu, void *data);
typedef void (*program_ends)(uint64_t id, void *data);

size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, block_translated call);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *block, block_runs call, int flags,
                                          void *data);
void qemu_plugin_register_atexit_cb(uint64_t id, program_ends call, void *data);
void qemu_plugin_outs(const char *text);

SHOWN int qemu_plugin_version = API;

static uint64_t executed;

static void runs(unsigned int cpu, void *length)
{
    (void)cpu;
    __atomic_fetch_add(&executed, (uint64_t)(uintptr_t)length, __ATOMIC_RELAXED);
}

static void translated(uint64_t id, struct qemu_plugin_tb *block)
{
    void *length = (void *)(uintptr_t)qemu_plugin_tb_n_insns(block);

    (void)id;
    qemu_plugin_register_vcpu_tb_exec_cb(block, runs, 0, length);
}

static void ends(uint64_t id, void *data)
{
    char line[64];

    (void)id;
    (void)data;
    snprintf(line, sizeof line, "Collected : %" PRIu64 "\n", executed);
    qemu_plugin_outs(line);
}

SHOWN int qemu_plugin_install(uint64_t id, const void *info, int count, char **words)
{
    (void)info;
    (void)count;
    (void)words;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, ends, NULL);
    return 0;
}
