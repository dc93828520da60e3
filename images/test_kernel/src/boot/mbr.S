/* Loads the loader blob from LBA 1 to 0x8000 and jumps to it. The blob says its length: a 16-bit
 * sector count at offset 2, "LOAD" at offset 4 (stage2.S). The texts are those of Windows' MBR. */
#define BLOB  0x8000
#define CHUNK 64 /* sectors a BIOS call: 32 KiB at offset 0 of a segment never wraps */

    .code16
    .globl _start
_start:
    cli; xorw %ax, %ax; movw %ax, %ds; movw %ax, %es; movw %ax, %ss; movw $0x7C00, %sp
    sti; cld; ljmp $0, $1f
1:  call read
    cmpl $0x44414F4C, BLOB + 4 /* "LOAD" */
    movw $missing, %si; jne fail
    movw BLOB + 2, %bp /* sectors left; the first is read again with the rest */
2:  movw $CHUNK, %bx
    cmpw %bx, %bp; jae 3f
    movw %bp, %bx
3:  movw %bx, packet + 2
    call read
    addw $(CHUNK * 512 / 16), packet + 6
    addl $CHUNK, packet + 8
    subw %bx, %bp; jnz 2b
    ljmp $0, $BLOB

/* int 13h/42h, extended read: EDD-3 (T13 1386D), §8.22; dl is the BIOS' drive throughout. */
read:
    movb $0x42, %ah; movw $packet, %si; int $0x13
    movw $failed, %si; jc fail
    ret

fail:
    lodsb
    testb %al, %al; jz 4f
    movb $0x0E, %ah; movw $7, %bx; int $0x10
    jmp fail
4:  hlt; jmp 4b

missing: .asciz "Missing operating system"
failed: .asciz "Error loading operating system"
    .balign 4
packet:
    .word 16, 1, 0, BLOB / 16 /* size, sectors, offset, segment */
    .quad 1                   /* LBA */
