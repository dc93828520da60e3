/* Start of the loader blob, at 0x8000 in real mode: memory map, A20, long mode with the first GiB
 * mapped onto itself; then LoaderMain. The link script defines the LOADER_ and BSS_ symbols. */
#define REGIONS 32

    .section .start, "awx"
    .code16
    .globl _start
_start:
    jmp 1f
    .org 2
    .word LOADER_SECTORS
    .ascii "LOAD"

/* BIOS int 15h/E820 (ACPI 6.4, §15.1): the table is shaped as LOADER_PARAMETER_BLOCK.Region. */
1:  xorl %ebx, %ebx; movw $BootRegions, %di
2:  movl $0xE820, %eax; movl $0x534D4150, %edx /* "SMAP" */
    movl $24, %ecx; movl $1, 20(%di); int $0x15
    jc 3f
    incl BootRegionCount; addw $24, %di
    testl %ebx, %ebx; jz 3f
    cmpl $REGIONS, BootRegionCount; jb 2b
3:  inb $0x92, %al; orb $2, %al; andb $0xFE, %al; outb %al, $0x92 /* A20: system control port A */
    cli; lgdt gdtr
    movl %cr0, %eax; orb $1, %al; movl %eax, %cr0
    ljmp $0x20, $protected

    .code32
protected:
    movl $0x18, %eax; movl %eax, %ds; movl %eax, %es; movl %eax, %ss
    movl $BSS_START, %edi; movl $BSS_END, %ecx; subl %edi, %ecx
    xorl %eax, %eax; rep stosb
    movl $IdentityMap + 0x1003, IdentityMap
    movl $IdentityMap + 0x2003, IdentityMap + 0x1000
    movl $0x83, %eax; movl $IdentityMap + 0x2000, %edi /* present, writable, 2 MiB */
4:  movl %eax, (%edi)
    addl $0x200000, %eax; addl $8, %edi
    cmpl $IdentityMap + 0x3000, %edi; jb 4b
    movl $0x6A0, %eax; movl %eax, %cr4 /* PAE, PGE, OSFXSR, OSXMMEXCPT */
    movl $IdentityMap, %eax; movl %eax, %cr3
    movl $0xC0000080, %ecx; xorl %edx, %edx; movl $0x900, %eax; wrmsr /* EFER: LME, NXE */
    movl $0x80010033, %eax; movl %eax, %cr0 /* PG, WP, NE, ET, MP, PE */
    ljmp $0x10, $long

    .code64
long:
    movl $stack_end, %esp
    call LoaderMain

    .balign 8
gdt: /* 0x10 and 0x18 are the kernel's selectors too; 0x20 only serves the way into long mode */
    .quad 0, 0, 0x00209B0000000000, 0x00CF93000000FFFF, 0x00CF9B000000FFFF
gdtr:
    .word gdtr - gdt - 1
    .long gdt
    .globl BootRegionCount, BootRegions, IdentityMap
    .balign 8
BootRegionCount: .quad 0
BootRegions: .fill REGIONS * 24, 1, 0

    .bss
    .balign 4096
IdentityMap: .skip 0x3000
    .skip 0x4000
stack_end:
