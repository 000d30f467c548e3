/* linux-4.20's munmap beside a touch and a gup: the scenario munmap-fault-gup for Spin.
 *
 * One atomic block is one step of zaplock's protocols, in the same order: the model has the same
 * grain. Compiled with -DDOWNGRADE_BEFORE_DETACH it has the mutation of that name.
 *
 * Frames: 1 and 2 are mapped at pages 0 and 1 in the beginning, 3 and 4 are fresh ones of the two
 * other tasks, 5 is the zero page. CPU 0 is the touch's, CPU 1 the gup's. With -DGUPS=3 there are
 * three tasks that do the gup.
 */
#ifndef GUPS
#define GUPS 1
#endif
#define PAGES 4
#define ZERO 5
#define MUST_FAULT 255

byte writer, readers, done;
bool attached = true, freed, downgraded, tearing, table = true;
byte generation = 1, serial = 1;
byte pte[PAGES];
bool writable[PAGES];
byte refs[6], maps[6];
bool gone[6], batch[6];
bool freed_table;                 /* the gather has taken the page table out */
byte freed_generation;
byte low = PAGES, high;           /* what the gather has to flush */
byte tlb[8];                      /* cpu * PAGES + page: frame */
bool tlb_writable[8];
byte walk[2];                     /* cpu: the generation of the table that it remembers */
byte total_vm = 6, hiwater_vm, committed = 6, rss = 3, pgtables = 1, pending;

inline drop(frame) {
  assert(!gone[frame] && refs[frame] > 0);
  refs[frame]--;
  if
  :: refs[frame] == 0 ->
     assert(maps[frame] == 0);
     for (i : 0 .. 7) { assert(tlb[i] != frame) }
     gone[frame] = true
  :: else
  fi;
  i = 0
}

inline translate(cpu, page, write, seen) {
  if
  :: tlb[cpu * PAGES + page] && (!write || tlb_writable[cpu * PAGES + page]) ->
     seen = tlb[cpu * PAGES + page]
  :: else ->
     if
     :: walk[cpu] && walk[cpu] != (table -> generation : 0) ->
        walk[cpu] = 0; seen = MUST_FAULT   /* through a table that is unlinked and empty */
     :: else ->
        if
        :: table -> walk[cpu] = generation
        :: else
        fi;
        if
        :: pte[page] && (!write || writable[page]) ->
           seen = pte[page];
           tlb[cpu * PAGES + page] = seen;
           tlb_writable[cpu * PAGES + page] = writable[page]
        :: else -> seen = MUST_FAULT
        fi
     fi
  fi;
  if
  :: seen != MUST_FAULT -> assert(!gone[seen])
  :: else
  fi
}

inline alloc_tables() {
  atomic {
    assert(!freed && attached);
    if
    :: !table -> serial++; generation = serial; table = true; pgtables++
    :: else
    fi
  }
}

inline install(page, frame, write) {
  atomic {
    assert(!freed && attached && table);
    if
    :: pte[page] == 0 ->
       assert(!tearing);
       pte[page] = frame; writable[page] = write;
       if
       :: frame != ZERO -> refs[frame]++; maps[frame]++; rss++
       :: else
       fi
    :: else
    fi
  }
}

/* A fault at a page: 0 in `result` if it was served, 11 for SIGSEGV. */
inline fault(page, frame, write) {
  atomic { writer == 0 -> readers++ };
  atomic { found = attached };
  atomic { assert(!found || !freed) };
  if
  :: !found -> result = 11
  :: else ->
     alloc_tables();
     install(page, frame, write);
     result = 0
  fi;
  atomic { readers-- }
}

inline at_end() {
  done++;
  if
  :: done == 2 + GUPS ->
     assert(total_vm == 2 && committed == 2 && freed && !attached && readers == 0 && writer == 0);
     assert(rss == 1 && pending == 0 && pgtables == table);
     for (i : 0 .. 3) { assert(pte[i] == 0) }
     for (i : 1 .. 4) { assert(refs[i] == 0) }
     i = 0
  :: else
  fi
}

proctype munmap_task() {
  byte i, page, total;
  atomic { writer == 0 && readers == 0 -> writer = 1 };
  atomic { assert(!freed) };          /* find_vma */
  atomic { assert(!freed) };          /* read_vma */
  atomic { assert(!freed) };          /* find_vma */
  atomic { assert(!freed) };          /* read_vma */
  atomic { assert(attached) };        /* find_vmas */
  atomic { assert(!freed) };          /* userfaultfd_unmap_prep */
  atomic { assert(!freed) };          /* read_counter */
  atomic { assert(!freed) };          /* floor_and_ceiling */
#ifdef DOWNGRADE_BEFORE_DETACH
  atomic { writer = 0; readers++ };
  atomic { assert(writer); attached = false };
#else
  atomic { assert(writer); attached = false };
#endif
  atomic { assert(!freed) };          /* companion */
  atomic { writer = 0; readers++ };   /* downgrade_write */
  atomic { assert(!freed) };          /* floor_and_ceiling */
  atomic { tearing = true; pending++ };
  atomic { assert(!freed) };          /* read_vma */
  page = 0;
  do
  :: atomic { page < PAGES ->
       if
       :: pte[page] ->
          if
          :: pte[page] != ZERO -> rss--; maps[pte[page]]--; batch[pte[page]] = true
          :: else
          fi;
          pte[page] = 0;
          if
          :: page < low -> low = page
          :: else
          fi;
          high = page + 1
       :: else
       fi;
       page++ }
  :: page == PAGES -> break
  od;
  atomic { assert(!freed) };          /* read_vma */
  atomic {                            /* free_pgd_range */
    if
    :: table ->
       for (i : 0 .. 3) { assert(pte[i] == 0) }
       i = 0; freed_table = true; freed_generation = generation; table = false; pgtables--;
       low = 0; high = PAGES
    :: else
    fi };
  atomic {                            /* tlb_begin_finish */
    for (i : 0 .. 7) {
      if
      :: i % PAGES >= low && i % PAGES < high -> tlb[i] = 0; tlb_writable[i] = false
      :: else
      fi
    }
    i = 0;
    if
    :: freed_table -> walk[0] = 0; walk[1] = 0
    :: else
    fi;
    low = PAGES; high = 0 };
  atomic {                            /* tlb_batch_pages_flush */
    page = 1;
    do
    :: page <= 4 ->
       if
       :: batch[page] -> batch[page] = false; drop(page)
       :: else
       fi;
       page++
    :: else -> break
    od;
    page = 0;
    assert(!freed_table || (walk[0] != freed_generation && walk[1] != freed_generation));
    freed_table = false };
  atomic { pending-- };               /* tlb_end_finish */
  atomic { tearing = false };
  atomic { assert(!freed) };          /* read_vma */
  atomic { hiwater_vm = total_vm };
  atomic { total = total_vm };
  atomic { total_vm = total - 4 };
  atomic { assert(!freed && !attached); freed = true };
  atomic { committed = committed - 4 };
  atomic { readers--; total = 0; at_end() }
}

proctype touch_task() {
  byte i, seen, result;
  bool found;
  atomic { translate(0, 1, false, seen) };
  do
  :: seen == MUST_FAULT ->
     fault(1, ZERO, false);
     if
     :: result -> break
     :: else -> atomic { translate(0, 1, false, seen) }
     fi
  :: else -> assert(seen == 2); break
  od;
  atomic { result = 0; translate(0, 2, true, seen) };
  do
  :: seen == MUST_FAULT ->
     fault(2, 3, true);
     if
     :: result -> break
     :: else -> atomic { translate(0, 2, true, seen) }
     fi
  :: else -> break
  od;
  atomic { seen = 0; result = 0; found = false; at_end() }
}

inline follow(page) {
  seen = pte[page];
  if
  :: seen && seen != ZERO -> assert(!gone[seen]); refs[seen]++
  :: else
  fi
}

inline pin_read_put(page, fresh) {
  atomic { follow(page) };
  if
  :: seen == 0 ->
     atomic { writer == 0 -> readers++ };
     atomic { follow(page) };
     if
     :: seen == 0 ->
        atomic { found = attached };
        atomic { assert(!found || !freed) };
        if
        :: found -> alloc_tables(); install(page, fresh, false); atomic { follow(page) }
        :: else
        fi
     :: else
     fi;
     atomic { readers-- }
  :: else
  fi;
  if
  :: seen ->
     atomic { assert(seen == ZERO || !gone[seen]) };   /* read_page */
     atomic {                                          /* put_page */
       if
       :: seen != ZERO -> drop(seen)
       :: else
       fi }
  :: else
  fi
}

proctype gup_task() {
  byte i, seen;
  bool found;
  pin_read_put(0, ZERO);
  pin_read_put(3, ZERO);
  atomic { seen = 0; found = false; at_end() }
}

init {
  atomic {
    pte[0] = 1; pte[1] = 2; writable[0] = true; writable[1] = true;
    refs[1] = 1; refs[2] = 1; maps[1] = 1; maps[2] = 1; rss = 3;
    tlb[PAGES + 1] = 2; tlb_writable[PAGES + 1] = true; walk[1] = 1;
    run munmap_task(); run touch_task(); run gup_task();
#if GUPS > 1
    run gup_task();
#endif
#if GUPS > 2
    run gup_task();
#endif
  }
}
