# The interpreter that a bare process runs (x86-64, GNU as). stub.py holds it assembled; a test
# assembles this text again and compares. It uses no stack, no data, no library: all it needs is
# its own pages, so everything else of the process can be unmapped.
#
# rbx: the entry at work (64 bytes: handler offset u32, syscall number u32, six arguments, result)
# r14: the last result   r13: where a faulting access resumes
        .intel_syntax noprefix
        .text
start:                                  # start(first entry)
        mov     rbx, rdi
        jmp     next
done:   mov     r14, rax
        mov     [rbx+56], rax
step:   add     rbx, 64
next:   mov     eax, [rbx]
        lea     rcx, [rip+start]
        add     rcx, rax
        jmp     rcx

op_syscall:                             # result = syscall(arguments)
        mov     eax, [rbx+4]
        mov     rdi, [rbx+8]
        mov     rsi, [rbx+16]
        mov     rdx, [rbx+24]
        mov     r10, [rbx+32]
        mov     r8, [rbx+40]
        mov     r9, [rbx+48]
        syscall
        jmp     done

op_load:                                # result = qword at a0, or minus (signal << 16 | code)
        lea     r13, [rip+done]
        mov     rdi, [rbx+8]
        mov     rax, [rdi]
        jmp     done

op_touch_load:                          # as op_load, at the beginning of the page of a0
        lea     r13, [rip+done]
        mov     rdi, [rbx+8]
        and     rdi, -4096
        mov     rax, [rdi]
        jmp     done

op_touch_store:                         # as op_store, at the beginning of the page of a0
        lea     r13, [rip+done]
        mov     rdi, [rbx+8]
        and     rdi, -4096
        mov     rsi, [rbx+16]
        mov     [rdi], rsi
        xor     eax, eax
        jmp     done

op_store:                               # qword at a0 = a1; result 0 or as op_load
        lea     r13, [rip+done]
        mov     rdi, [rbx+8]
        mov     rsi, [rbx+16]
        mov     [rdi], rsi
        xor     eax, eax
        jmp     done

op_patch:                               # qword at a0 = qword at a1 + a2; the last result stays
        mov     rdi, [rbx+8]
        mov     rsi, [rbx+16]
        mov     rax, [rsi]
        add     rax, [rbx+24]
        mov     [rdi], rax
        jmp     step

op_jump:                                # go on at the entry a0
        mov     rbx, [rbx+8]
        jmp     next

op_jump_if_zero:                        # the same, if the last result was 0
        test    r14, r14
        jnz     step
        mov     rbx, [rbx+8]
        jmp     next

op_read:                                # observe the file a0, at least a4 bytes or all, through
        mov     r15, [rbx+24]           # the buffer a2 of a1 bytes: what is full is written out
        xor     r12d, r12d
read_on:
        xor     r14d, r14d
1:      mov     rdi, [rbx+8]
        lea     rsi, [r15+r12]
        mov     rdx, [rbx+16]
        sub     rdx, r12
        mov     eax, 0xc00              # with so few at once seq_file, whose buffer is a page, need
        cmp     rdx, rax                # not drop a VMA of smaps that no longer fits, and write it
        cmova   rdx, rax                # again
        lea     r10, [r14+r12]
        mov     eax, 17                 # pread64
        syscall
        test    rax, rax
        jle     observed
        add     r12, rax
        lea     rax, [r14+r12]
        cmp     rax, [rbx+40]
        jae     observed
        cmp     r12, [rbx+16]
        jb      1b
        mov     rsi, r15
        mov     rdx, r12
        test    r14, r14
        jnz     2f
        cmp     dword ptr [rbx+4], 2
        jne     2f
        sub     rsi, 16                 # records of which none are as before: see there
        add     rdx, 16
        mov     qword ptr [rsi], 0
        mov     qword ptr [rsi+8], 0
2:      mov     rdi, [rbx+32]
        mov     eax, 1
        syscall
        add     r14, r12
        xor     r12d, r12d
        jmp     1b

observed:                               # r12 bytes at r15 are the rest, r14 are written out: write
        mov     rdi, [rbx+48]           # them to the file a3, if they are all and not the same that
        mov     eax, [rbx+4]            # are kept at a5 (their length, the room, themselves). Result
        cmp     eax, 1                  # = bytes, -1 where they are the same
        ja      records
        jb      3f
        mov     r8, 0x706d754465726f43  # CoreDump: of status only what comes before that counts, as
        mov     rcx, [rdi]              # how often the process had to wait is never the same for long
        cmp     rcx, r12
        jae     1f
        cmp     r8, [r15+rcx]
        je      2f
1:      xor     ecx, ecx
        cmp     r12, 8
        jb      3f
        lea     rdx, [r12-8]
4:      cmp     r8, [r15+rcx]
        je      2f
        inc     rcx
        cmp     rcx, rdx
        jbe     4b
        jmp     3f
2:      mov     r12, rcx
3:      test    rdi, rdi
        jz      6f
        test    r14, r14
        jnz     5f
        mov     qword ptr [r15+r12], 0
        lea     rcx, [r12+7]
        shr     rcx, 3
        cmp     [rdi], r12
        jne     4f
        xor     eax, eax
2:      cmp     rax, rcx
        je      same
        mov     rdx, [r15+rax*8]
        cmp     rdx, [rdi+16+rax*8]
        jne     4f
        inc     rax
        jmp     2b
4:      cmp     r12, [rdi+8]
        ja      5f
        mov     [rdi], r12
        add     rdi, 16
        mov     rsi, r15
        rep movsq
        jmp     6f
5:      mov     qword ptr [rdi], -1
6:      mov     rdi, [rbx+32]
        mov     rsi, r15
        mov     rdx, r12
        mov     eax, 1
        syscall
        lea     rax, [r14+r12]
        jmp     done
same:   mov     rax, -1
        jmp     done

records:                                # as observed, of smaps: written are how many bytes are as
        xor     ecx, ecx                # before at the beginning (rcx) and at the end (rdx), both
        xor     edx, edx                # whole records, then what is between. Before the buffer is
        test    r14, r14                # room for the two. A record begins with a line that has no
        jz      1f                      # capital at its beginning
        mov     qword ptr [rdi], -1
        mov     rdi, [rbx+32]
        mov     rsi, r15
        mov     rdx, r12
        mov     eax, 1
        syscall
        lea     rax, [r14+r12+16]
        jmp     done
1:      mov     r8, [rdi]
        mov     qword ptr [r15+r12], 0
        cmp     r12, [rdi+8]
        ja      8f
        cmp     r8, -1
        je      9f
        mov     r9, r12
        cmp     r9, r8
        cmova   r9, r8
        and     r9, -8
2:      cmp     rcx, r9                 # the first word that is not the same
        je      3f
        mov     rax, [r15+rcx]
        cmp     rax, [rdi+16+rcx]
        jne     3f
        add     rcx, 8
        jmp     2b
3:      cmp     r12, r8
        jne     4f
        mov     rax, [r15+rcx]
        cmp     rax, [rdi+16+rcx]
        jne     4f
        cmp     rcx, r9
        je      same
4:      dec     rcx                     # back to the beginning of a record
        jle     5f
        cmp     byte ptr [r15+rcx-1], 10
        jne     4b
        movzx   eax, byte ptr [r15+rcx]
        sub     eax, 65
        cmp     eax, 26
        jb      4b
        jmp     6f
5:      xor     ecx, ecx
6:      mov     r9, r12                 # the last words that are the same, as far as they don't
        cmp     r9, r8                  # overlap those
        cmova   r9, r8
        sub     r9, rcx
        lea     rsi, [r15+r12]
        mov     r10, rsi
        lea     r11, [rdi+16+r8]
2:      sub     r9, 8
        jb      3f
        mov     rax, [r10-8]
        cmp     rax, [r11-8]
        jne     3f
        sub     r10, 8
        sub     r11, 8
        jmp     2b
3:      inc     r10                     # on to the beginning of a record
        cmp     r10, rsi
        jae     9f
        cmp     byte ptr [r10-1], 10
        jne     3b
        movzx   eax, byte ptr [r10]
        sub     eax, 65
        cmp     eax, 26
        jb      3b
        mov     rdx, rsi
        sub     rdx, r10
        jmp     9f
8:      mov     qword ptr [rdi], -1     # too long to be kept
        jmp     10f
9:      mov     [rdi], r12
        mov     r8, rcx
        lea     rsi, [r15+rcx]
        lea     rdi, [rdi+16+rcx]
        mov     rcx, r12
        sub     rcx, r8
        add     rcx, 8
        rep movsb
        mov     rcx, r8
10:     lea     rsi, [r15+rcx-16]
        mov     [rsi], rcx
        mov     [rsi+8], rdx
        sub     r12, rcx
        sub     r12, rdx
        lea     rdx, [r12+16]
        mov     rdi, [rbx+32]
        mov     eax, 1
        syscall
        lea     rax, [r12+16]
        jmp     done

op_smaps:                               # as op_read of smaps, after status. If that is as before, and
        cmp     r14, -1                 # if what is below the ring is, and if nothing else is between
        jne     7f                      # or above: then no more is read, of the ring itself and of what
        mov     rdi, [rbx+48]           # is no process's own ([vsyscall])
        mov     rcx, [rdi]
        cmp     rcx, -1
        je      7f
        add     rdi, 16
        mov     r9, [rip+start+0x13b0]  # bytes of what is kept that are below the ring, if known
        test    r9, r9
        jns     below
        mov     r8, [rip+start+0x13a0]  # else look for the ring's line, from the end on
        lea     rdx, [rcx-16]
1:      test    rdx, rdx
        js      7f
        cmp     r8, [rdi+rdx]
        je      3f
2:      dec     rdx
        jmp     1b
3:      mov     rax, [rdi+rdx+5]
        cmp     rax, [rip+start+0x13a5]
        jne     2b
        mov     r9, rdx
        xor     eax, eax
        test    rdx, rdx
        jz      6f
        cmp     byte ptr [rdi+rdx-1], 10
        jne     2b
        mov     r8, 0x3a7367616c466d56  # VmFlags: of the last but one below it, then its neighbour's
        sub     rdx, 256                # line, where that one ends
1:      dec     rdx
        js      2f
        cmp     r8, [rdi+rdx]
        jne     1b
        jmp     3f
2:      xor     edx, edx
3:      cmp     byte ptr [rdi+rdx], 45
        je      4f
        inc     rdx
        cmp     byte ptr [rdi+rdx], 10
        jne     3b
        inc     rdx
        jmp     3b
4:      inc     rdx
        movzx   ecx, byte ptr [rdi+rdx]
        cmp     cl, 32
        je      6f
        sub     ecx, 48
        cmp     ecx, 9
        jbe     5f
        sub     ecx, 39
5:      shl     rax, 4
        add     rax, rcx
        jmp     4b
6:      mov     [rip+start+0x13b8], rax
        mov     [rip+start+0x13b0], r9
        jmp     below
7:      mov     qword ptr [rip+start+0x13b0], -1
        jmp     op_read

below:  mov     r15, [rbx+24]           # read so much again
        xor     r12d, r12d
1:      mov     rdx, r9
        sub     rdx, r12
        jz      2f
        mov     eax, 0xc00              # or as much as fits seq_file's page: what has been written
        cmp     rdx, 0x1000             # before is never all, as it would write one VMA more
        cmovae  rdx, rax
        mov     rdi, [rbx+8]
        lea     rsi, [r15+r12]
        mov     r10, r12
        mov     eax, 17
        syscall
        test    rax, rax
        jle     6f
        add     r12, rax
        jmp     1b
2:      mov     rdi, [rbx+48]
        add     rdi, 16
        xor     eax, eax
3:      lea     rcx, [rax+8]
        cmp     rcx, r9
        ja      4f
        mov     rdx, [r15+rax]
        cmp     rdx, [rdi+rax]
        jne     6f
        mov     rax, rcx
        jmp     3b
4:      test    r9, r9
        jz      5f
        mov     rdx, [r15+r9-8]
        cmp     rdx, [rdi+r9-8]
        jne     6f
5:      mov     rax, [rip+start+0x13b8]
        lea     rdx, [rip+start+0x1490]
        mov     [rdx+16], rax
        mov     edi, 7
        mov     esi, 0xc0686611         # PROCMAP_QUERY: what comes next is the ring,
        mov     eax, 16
        syscall
        test    rax, rax
        jnz     6f
        lea     rax, [rip+start]
        cmp     rax, [rdx+24]
        jne     6f
        mov     rax, [rdx+32]
        mov     [rdx+16], rax
        mov     edi, 7
        mov     eax, 16
        syscall
        cmp     rax, -2                 # and after it nothing: ENOENT
        jne     6f
        mov     rax, -1
        jmp     done
6:      mov     qword ptr [rip+start+0x13b0], -1
        jmp     read_on                 # the rest, too

op_scan:                                # observe what PAGEMAP_SCAN (fd a0, argument a1) and the
        mov     rsi, [rbx+16]           # first qword of every present page tell: regions or errno,
        mov     r15, [rbx+24]           # 0, regions, qwords. Buffer a2, no qword at or beyond a4:
        lea     rcx, [r15+16]           # what is full is written out
        mov     [rsi+40], rcx
        mov     rdi, [rbx+8]
        mov     rdx, rsi
        mov     esi, 0xc0606610
        mov     eax, 16
        syscall
        mov     [r15], rax
        mov     qword ptr [r15+8], 0
        test    rax, rax
        jns     1f
        xor     eax, eax
1:      lea     rax, [rax+rax*2]
        lea     rsi, [r15+16]
        lea     r8, [rsi+rax*8]
        mov     r12, r8
        xor     r14d, r14d
        lea     r13, [rip+refused]
        xor     ebp, ebp
2:      cmp     rsi, r8
        jae     5f
        mov     rdi, [rsi]
        mov     r9, [rsi+8]
        test    byte ptr [rsi+16], 8
        jz      4f
3:      cmp     rdi, r9
        jae     4f
        cmp     r12, [rbx+40]
        jb      7f
        mov     r13, rdi
        mov     r10, rsi
        mov     rdx, r12
        sub     rdx, r15
        add     r14, rdx
        mov     rdi, [rbx+32]
        mov     rsi, r15
        mov     eax, 1
        syscall
        mov     r15, r8
        mov     r12, r8
        mov     rsi, r10
        mov     rdi, r13
        lea     r13, [rip+refused]
7:      cmp     rdi, rbp
        jb      known
8:      mov     r10, rsi
        mov     rax, [rdi]
6:      mov     [r12], rax
        add     r12, 8
        add     rdi, 4096
        mov     rax, r9
        sub     rax, [rsi]
        cmp     rax, 0x40000000         # of a region of 1 GiB only the first of each 2 MiB is read
        jb      3b
        add     rdi, 0x1ff000
        jmp     3b
4:      add     rsi, 24
        jmp     2b
5:      sub     r12, r15
        jmp     observed

refused:                                # a load at rdi has ended with the signal rax, of which a
        mov     rsi, r10                # mapping's pages are told by its first, below rbp: see known
        and     rdi, -4096
        mov     [rip+start+0x14f8], rax
        cmp     rax, -720898            # SIGSEGV, SEGV_ACCERR
        jne     6b
        mov     rbp, rdi
        or      rbp, 0x1fffff
        inc     rbp
        test    byte ptr [rsi+16], 0x40
        jnz     6b
        mov     r13, rsi
        mov     r10, rdi
        lea     rdx, [rip+start+0x1490]
        mov     [rdx+16], rdi
        mov     edi, 7
        mov     esi, 0xc0686611         # PROCMAP_QUERY (6.11): where the mapping ends
        mov     eax, 16
        syscall
        mov     rdi, r10
        mov     rsi, r13
        lea     r13, [rip+refused]
        xor     ebp, ebp
        test    rax, rax
        cmovz   rbp, [rdx+32]
        mov     rax, [rip+start+0x14f8]
        jmp     6b

known:                                  # one that a mapping refuses is told by EFAULT, which takes
        test    byte ptr [rsi+16], 0x40 # the kernel a third of the time of a signal, and one of a
        jnz     9f                      # huge page not at all: it has one entry for all of them
        mov     r13, rsi
        mov     rsi, rdi
        mov     edi, 99                 # rt_sigprocmask reads the mask before it looks how
        xor     edx, edx
        mov     r10d, 8
        mov     eax, 14
        syscall
        mov     rdi, rsi
        mov     rsi, r13
        lea     r13, [rip+refused]
        cmp     eax, -14
        jne     8b
9:      mov     rax, [rip+start+0x14f8]
        jmp     6b

op_meet:                                # one less in the qword a0; wait until it is 0 or less (first
        mov     rdi, [rbx+8]            # turning round, then yielding the CPU); then turn round a1
        lock dec qword ptr [rdi]        # times more. Result 0
1:      mov     r12d, 4096
2:      cmp     qword ptr [rdi], 0
        jle     3f
        pause
        dec     r12d
        jnz     2b
        mov     eax, 24
        syscall
        jmp     1b
3:      mov     r12, [rbx+16]
4:      test    r12, r12
        jz      5f
        dec     r12
        jmp     4b
5:      xor     eax, eax
        jmp     done

on_signal:                              # handler(signal, siginfo, ucontext), which never returns:
        mov     eax, edi                # rax = what, rdi = where, and on at r13, off this stack
        shl     eax, 16
        mov     ecx, [rsi+8]
        and     ecx, 0xffff
        or      eax, ecx
        neg     rax
        mov     rdi, [rsi+16]
        xor     esp, esp
        jmp     r13
