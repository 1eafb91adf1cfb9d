/* The guest of the probe: a 64 KiB firmware image that does what a kernel does first, and nothing else.
 *
 * Reset vector → real mode → protected mode → long mode with paging → the registers that a kernel sets → an exception →
 * a page that is mapped, changed and flushed → user mode and back → a timer interrupt → "exit 42".
 * Anything that goes wrong is a hang or a triple fault; both are seen from outside.
 *
 * as x86_64.S -o stub.o && objcopy -O binary -j .text stub.o x86_64.bin   (a test compares)
 */
        .text
        .set    base, 0xf0000                   /* where the machine shows the last 64 KiB of the firmware */
        .set    tables, 0x10000                 /* page tables, 4 pages */
        .set    idt, 0x18000
        .set    stack, 0x20000
        .set    probe_page, 0x600000            /* mapped by hand, outside the first 2 MiB */

start:
        .code16
real:
        cli
        ljmp    $0xf000, $(real_low - start)
real_low:
        mov     %cs, %ax
        mov     %ax, %ds
        lgdtl   (gdt_pointer - start)
        mov     %cr0, %eax
        or      $1, %al
        mov     %eax, %cr0
        ljmpl   $0x08, $(base + protected - start)

        .code32
protected:
        mov     $0x10, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        mov     $stack, %esp
        /* Page tables: the first 1 GiB in pages of 2 MiB, writable, for user mode too. */
        mov     $tables, %edi
        xor     %eax, %eax
        mov     $(4 * 1024), %ecx
        cld
        rep stosl
        movl    $(tables + 0x1007), tables
        movl    $(tables + 0x2007), tables + 0x1000
        mov     $(tables + 0x2000), %edi
        mov     $0x87, %eax
        mov     $512, %ecx
1:      mov     %eax, (%edi)
        add     $0x200000, %eax
        add     $8, %edi
        loop    1b
        /* And the local interrupt controller at 0xfee00000, uncached. */
        movl    $(tables + 0x3007), tables + 0x1000 + 3 * 8
        movl    $0xfee00097, tables + 0x3000 + 0x1f7 * 8
        mov     %cr4, %eax
        or      $0x6a0, %eax                    /* PAE, PGE, OSFXSR, OSXMMEXCPT */
        mov     %eax, %cr4
        mov     $tables, %eax
        mov     %eax, %cr3
        mov     $0xc0000080, %ecx               /* EFER: SCE, LME, NXE */
        rdmsr
        or      $0x901, %eax
        wrmsr
        mov     %cr0, %eax
        and     $0x9fffffff, %eax               /* caches on */
        or      $0x80050033, %eax               /* PG, AM, WP, NE, ET, MP, PE */
        and     $~4, %eax
        mov     %eax, %cr0
        ljmpl   $0x18, $(base + long - start)

        .code64
long:
        mov     $0x20, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        mov     $stack, %esp
        /* What a kernel asks and sets on its first page. */
        xor     %eax, %eax
        cpuid
        mov     $1, %eax
        cpuid
        mov     $0x80000001, %eax
        cpuid
        rdtsc
        mov     $0x1b, %ecx                     /* APIC_BASE */
        rdmsr
        mov     $0x277, %ecx                    /* PAT, as a kernel has it */
        mov     $0x00070106, %eax
        mov     $0x00070106, %edx
        wrmsr
        mov     $0xc0000081, %ecx               /* STAR: kernel 0x18, user 0x28 + 8 and + 16 */
        xor     %eax, %eax
        mov     $0x002b0018, %edx
        wrmsr
        mov     $0xc0000082, %ecx               /* LSTAR */
        mov     $(base + from_user - start), %eax
        xor     %edx, %edx
        wrmsr
        mov     $0xc0000084, %ecx               /* FMASK */
        mov     $0x200, %eax
        wrmsr
        mov     $0xc0000100, %ecx               /* FS_BASE */
        mov     $0x30000, %eax
        wrmsr
        mov     $0xc0000101, %ecx               /* GS_BASE */
        wrmsr
        mov     $0xc0000102, %ecx               /* KERNEL_GS_BASE */
        mov     $0x31000, %eax
        wrmsr
        swapgs
        swapgs
        movl    $0x1234, %fs:0
        cmpl    $0x1234, 0x30000
        jne     wrong
        xorps   %xmm0, %xmm0
        movaps  %xmm0, 0x30010

        /* Exceptions: vector 3 is ours, vector 32 the timer's. */
        mov     $(idt + 3 * 16), %edi
        mov     $(base + exception - start), %eax
        call    gate
        mov     $(idt + 32 * 16), %edi
        mov     $(base + timer - start), %eax
        call    gate
        lidt    (base + idt_pointer - start)
        xor     %ebx, %ebx
        int3
        cmp     $3, %ebx
        jne     wrong

        /* Change a mapping under the processor: the page's contents must follow. */
        movl    $0x11111111, probe_page
        movl    $0x22222222, 0x400000
        mov     $(tables + 0x2000 + 3 * 8), %edi        /* the entry of probe_page */
        movl    $0x400087, (%rdi)
        invlpg  probe_page
        cmpl    $0x22222222, probe_page
        jne     wrong
        movl    $0x600087, (%rdi)
        mov     %cr3, %rax
        mov     %rax, %cr3
        cmpl    $0x11111111, probe_page
        jne     wrong

        /* User mode and back. */
        mov     $(base + user - start), %ecx
        mov     $2, %r11d
        sysretq
user:
        mov     $0x55, %ebx
        syscall
        ud2
from_user:
        mov     $stack, %esp
        cmp     $0x55, %ebx
        jne     wrong

        /* The timer, through the old interrupt controller. */
        mov     $0x11, %al
        out     %al, $0x20
        mov     $32, %al
        out     %al, $0x21
        mov     $4, %al
        out     %al, $0x21
        mov     $1, %al
        out     %al, $0x21
        mov     $0xfe, %al
        out     %al, $0x21
        mov     $0x34, %al
        out     %al, $0x43
        mov     $0xa9, %al                      /* 1193 ticks: 1 ms */
        out     %al, $0x40
        mov     $0x04, %al
        out     %al, $0x40
        mov     $0xfee000f0, %edi               /* local controller on, spurious vector 255 */
        movl    $0x1ff, (%rdi)
        mov     $0xfee00350, %edi               /* its LINT0: the old controller */
        movl    $0x700, (%rdi)
        xor     %ebx, %ebx
        sti
2:      pause                                   /* not hlt, out of which emulated nested hosts do not always wake */
        cmp     $32, %ebx
        jne     2b
        cli

        mov     $42, %al
        out     %al, $0xf4                      /* newer QEMUs go on for a moment */
        jmp     3f
wrong:
        mov     $1, %al
        out     %al, $0xf4
3:      cli
        hlt
        jmp     3b

exception:
        mov     $3, %ebx
        iretq
timer:
        mov     $0x20, %al
        out     %al, $0x20
        mov     $32, %ebx
        iretq

        /* Writes an interrupt gate at %edi for the handler at %eax. */
gate:
        mov     %ax, (%rdi)
        movw    $0x18, 2(%rdi)
        movw    $0x8e00, 4(%rdi)
        shr     $16, %eax
        mov     %ax, 6(%rdi)
        movl    $0, 8(%rdi)
        ret

        .balign 8
gdt:
        .quad   0
        .quad   0x00cf9b000000ffff              /* 0x08: 32-bit code */
        .quad   0x00cf93000000ffff              /* 0x10: data */
        .quad   0x00af9b000000ffff              /* 0x18: 64-bit code */
        .quad   0x00cf93000000ffff              /* 0x20: data; the kernel's stack after syscall */
        .quad   0x00cffb000000ffff              /* 0x28: 32-bit user code, for STAR */
        .quad   0x00cff3000000ffff              /* 0x30: user data */
        .quad   0x00affb000000ffff              /* 0x38: 64-bit user code */
gdt_end:
gdt_pointer:
        .word   gdt_end - gdt - 1
        .long   base + gdt - start
        .balign 8
idt_pointer:
        .word   33 * 16 - 1
        .quad   idt

        .org    0xfff0
        .code16
        jmp     real
        .org    0x10000
